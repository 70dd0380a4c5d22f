import { pictureURL } from "./api.js";

// Shows the parts of a reply: reasoning, preamble, answer, tool call.
// Only HTML that the server has rendered is set as HTML; everything else is text.

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export class ReplyView {
  // `decide(part, {allowed, always, reason})` is called when a person allows or refuses a call.
  constructor(decide) {
    this.element = element("article", { class: "reply", "aria-label": "Reply" });
    this.decide = decide;
    this.parts = new Map();
    this.reasoning = false;
    this.pictures = [];
  }

  // A part of a stored conversation.
  showStored(part) {
    const view = this.begin(part.kind, part.name);
    if (part.html != null) view.text.innerHTML = part.html;
    else view.text.textContent = part.text;
    if (part.kind === "reasoning") view.summary.textContent = "Reasoning";
    if (part.kind === "call" && part.result !== null) this.showResult(view, part.result);
    if (part.source !== undefined) view.element.dataset.source = part.source;
  }

  apply(event) {
    const view = this.parts.get(event.part);
    switch (event.type) {
      case "part":
        this.parts.set(event.part, this.begin(event.kind, event.name));
        this.reasoning = event.kind === "reasoning";
        break;
      case "text":
        view.text.append(event.text);
        if (!view.element.open && view.summary) this.showLatest(view);
        break;
      case "code":
        view.text.innerHTML = event.html;
        break;
      case "blocks":
        this.replaceBlocks(view.text, event.from, event.html);
        break;
      case "end":
        this.reasoning = false;
        if (event.source !== undefined) view.element.dataset.source = event.source;
        if (view.kind === "reasoning") view.summary.textContent = `Reasoned for ${event.seconds} s`;
        break;
      case "approval":
        this.askApproval(view, event);
        break;
      case "result":
        this.showResult(view, event);
        break;
      case "note":
        this.element.append(element("p", { class: "note" }, event.text));
        break;
      case "error":
        this.element.append(element("p", { class: "note error", role: "alert" }, event.message));
        break;
    }
  }

  begin(kind, name) {
    const view = { kind, name };
    if (kind === "answer" || kind === "preamble") {
      view.element = view.text = element("div", { class: `${kind} markdown`, dir: "auto" });
    } else {
      const title = kind === "call" ? `Tool: ${name}` : "Reasoning…";
      view.summary = element("summary", {}, title);
      view.text = element("pre", { class: "plain", dir: "auto", tabIndex: 0 });
      view.element = element("details", { class: kind, open: kind === "call" }, view.summary, view.text);
      if (kind === "call") view.element.dataset.tool = name;
    }
    this.element.append(view.element);
    return view;
  }

  // The last words of reasoning beside its title while it is folded.
  showLatest(view) {
    if (view.kind !== "reasoning") return;
    const last = view.text.textContent.slice(-120).split("\n").filter(Boolean).at(-1) ?? "";
    view.summary.replaceChildren("Reasoning… ", element("span", { class: "latest", ariaHidden: "true" }, last));
  }

  replaceBlocks(parent, from, html) {
    while (parent.children.length > from) parent.lastElementChild.remove();
    for (const block of html) {
      const made = element("div", { class: "block" });
      made.innerHTML = block;
      parent.append(made);
    }
  }

  askApproval(view, event) {
    const row = element("div", { class: "row approval", role: "group", ariaLabel: "Allow this call?" });
    const answer = (decision) => {
      row.replaceChildren(decision.allowed ? "Allowed" : "Refused");
      this.decide(event.part, decision);
    };
    const button = (name, act) => element("button", { type: "button", onclick: act }, name);
    const reason = element("input", { type: "text", maxLength: 2000, placeholder: "Reason to refuse", ariaLabel: "Reason to refuse, for the model" });
    const refuse = () => answer({ allowed: false, reason: reason.value });
    reason.addEventListener("keydown", (key) => {
      if (key.key === "Enter") refuse();
    });
    const allow = button("Allow", () => answer({ allowed: true }));
    row.append(
      element("span", {}, `Allow ${event.name}?`),
      allow,
      button("Allow in this conversation", () => answer({ allowed: true, always: true })),
      button("Refuse", refuse),
      reason,
    );
    view.element.append(row);
    allow.focus();
    row.scrollIntoView({ block: "nearest" });
  }

  // A call that went well is folded; its title says what was called.
  showResult(view, { text, error, seconds, figures }) {
    view.element.querySelector(".approval")?.remove();
    const took = seconds == null ? "" : ` after ${seconds} s`;
    view.element.append(
      element("p", { class: "caption" }, `${error ? "Error" : "Result"}${took}`),
      element("pre", { class: error ? "plain error" : "plain", dir: "auto", tabIndex: 0 }, text),
    );
    const code = view.text.textContent.trim().replace(/\s+/g, " ").slice(0, 120);
    view.summary.replaceChildren(`Tool: ${view.name} `, element("span", { class: "latest" }, code));
    if (!error && !view.element.contains(document.activeElement)) view.element.open = false;
    const pictures = figures.map((path, i) => this.figure(path, `Figure ${i + 1} of ${view.name}`));
    if (pictures.length) view.element.after(...pictures);
  }

  figure(path, name) {
    const shown = element("figure", { class: "picture" });
    pictureURL(path)
      .then((url) => {
        this.pictures.push(url);
        const save = element("a", { href: url, download: `${name}.png` }, "Save");
        shown.append(element("img", { src: url, alt: name }), element("figcaption", {}, `${name} `, save));
      })
      .catch((error) => shown.append(element("p", { class: "note error" }, `${name} cannot be shown: ${error.message}`)));
    return shown;
  }

  // Frees the pictures: the reply is no longer shown.
  release() {
    this.pictures.forEach((url) => URL.revokeObjectURL(url));
    this.pictures = [];
  }

  // The answer as it was written, in Markdown, to be copied.
  get answer() {
    return [...this.element.querySelectorAll(".answer")]
      .map((it) => it.dataset.source ?? it.innerText)
      .join("\n\n");
  }
}
