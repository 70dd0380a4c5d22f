// Which groups of tools a conversation may use: a switch for each.

import { request } from "./api.js";
import { element } from "./reply.js";

const $ = (id) => document.getElementById(id);

export class ToolSwitches {
  constructor() {
    this.switches = new Map();
    this.off = [];
  }

  // Lists the groups; those of MCP servers may take a while.
  async load() {
    const { groups } = await request("GET", "/page/tools");
    this.switches = new Map(groups.map((group) => [group.name, this.newSwitch(group)]));
    const rows = groups.map((group) => this.row(group));
    $("tool-list").replaceChildren(...rows);
    $("tools").hidden = !groups.length;
    this.set(this.off);
  }

  newSwitch(group) {
    return element("input", { type: "checkbox", id: `tool-${group.name}`, onchange: () => this.showCount() });
  }

  row(group) {
    const names = group.tools.length ? group.tools.join(", ") : "";
    const about = [group.asks ? "asks before each call" : "runs without asking", names].filter(Boolean).join(": ");
    return element(
      "label",
      { title: about },
      this.switches.get(group.name),
      element("span", {}, group.name, element("small", {}, about)),
    );
  }

  // Sets the switches of the conversation that is shown: these names are off.
  set(off) {
    this.off = off;
    for (const [name, box] of this.switches) box.checked = !off.includes(name);
    this.showCount();
  }

  // The groups that are off. Until the list is here, what the conversation had.
  get() {
    if (!this.switches.size) return this.off;
    const known = [...this.switches].filter(([, box]) => !box.checked).map(([name]) => name);
    return known.concat(this.off.filter((name) => !this.switches.has(name)));
  }

  showCount() {
    const boxes = [...this.switches.values()];
    const on = boxes.filter((box) => box.checked).length;
    $("tools-summary").textContent = `Tools: ${on === boxes.length ? "all" : on === 0 ? "none" : `${on} of ${boxes.length}`}`;
  }
}
