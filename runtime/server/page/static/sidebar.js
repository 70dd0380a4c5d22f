// The list of conversations.

import { request } from "./api.js";
import { element } from "./reply.js";

const $ = (id) => document.getElementById(id);

export class Sidebar {
  // `open(id)` is called when a conversation is chosen, `report(error)` when a search fails.
  constructor(open, report) {
    this.open = open;
    this.current = null;
    this.asked = 0;
    $("search").addEventListener("input", () => {
      clearTimeout(this.waiting);
      this.waiting = setTimeout(() => this.load().catch(report), 200);
    });
    $("show-sidebar").addEventListener("click", () => this.show(true));
    $("hide-sidebar").addEventListener("click", () => this.show(false));
    $("shade").addEventListener("click", () => this.show(false));
  }

  // Returns the conversations that are listed.
  async load() {
    const text = $("search").value.trim();
    const query = text ? `?q=${encodeURIComponent(text)}` : "";
    const asked = ++this.asked;
    const { conversations } = await request("GET", `/page/conversations${query}`);
    if (asked !== this.asked) return []; // an answer that comes late
    const rows = conversations.map((it) => this.row(it));
    if (!rows.length) rows.push(element("li", { class: "empty" }, text ? "Nothing found" : "No conversations yet"));
    $("conversations").replaceChildren(...rows);
    this.mark(this.current);
    return conversations;
  }

  row(conversation) {
    const button = element("button", { type: "button", onclick: () => this.open(conversation.id) }, conversation.title);
    button.title = conversation.title;
    const row = element("li", {}, button);
    row.dataset.id = conversation.id;
    return row;
  }

  mark(id) {
    this.current = id;
    for (const row of $("conversations").children) {
      const button = row.querySelector("button");
      if (row.dataset.id === id) button?.setAttribute("aria-current", "page");
      else button?.removeAttribute("aria-current");
    }
  }

  get isOver() {
    return document.body.classList.contains("with-sidebar");
  }

  // Over the conversation, where the page is narrow.
  show(visible) {
    this.set(visible);
    (visible ? $("search") : $("show-sidebar")).focus();
  }

  set(visible) {
    document.body.classList.toggle("with-sidebar", visible);
    $("shade").hidden = !visible;
    $("show-sidebar").ariaExpanded = String(visible);
  }
}
