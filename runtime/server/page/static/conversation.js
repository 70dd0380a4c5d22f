// One conversation: what was said, the reply under way, and sending.

import { replyEvents, request } from "./api.js";
import { ReplyView, element } from "./reply.js";

const $ = (id) => document.getElementById(id);

export class ConversationView {
  // `tools` are the switches of the tools. `changed(summary)` is called when a conversation was made,
  // renamed or continued.
  constructor(tools, changed) {
    this.tools = tools;
    this.changed = changed;
    this.messages = $("messages");
    this.atEnd = true;
    // Only a person scrolls up: articles that are laid out first move the end, and not the place.
    let before = 0;
    this.messages.addEventListener("scroll", () => {
      const now = this.messages.scrollTop;
      if (this.isAtEnd()) this.atEnd = true;
      else if (now < before) this.atEnd = false;
      before = now;
      this.showWay();
    });
    $("to-end").addEventListener("click", () => this.scrollToEnd());
    $("instructions").addEventListener("input", () => this.showInstructions());
    this.messages.addEventListener("click", (event) => {
      // What a person unfolds stays where it is.
      if (event.target.closest("summary")) this.atEnd = false;
      const code = event.target.closest(".copy-code")?.closest("figure").querySelector("code");
      if (code) this.copy(code.textContent);
    });
    // What is shown grows: a picture when it has been loaded, an article when it is laid out first.
    this.sizes = new ResizeObserver(() => {
      if (this.atEnd) this.scrollToEnd();
      this.showWay();
    });
    this.clear();
  }

  clear() {
    this.leave?.abort();
    this.leave = new AbortController();
    this.id = null;
    this.reply = null;
    this.opening = null;
    this.length = 0;
    for (const reply of this.messages.querySelectorAll(".reply")) reply.view.release();
    this.sizes.disconnect();
    this.sizes.observe(this.messages); // smaller when the field below grows
    this.messages.replaceChildren();
    this.showWay();
    this.tools.set([]);
    this.showInstructions("");
    this.showTitle("New conversation");
    this.showContext(null);
    this.showRunning(false);
    $("menu").hidden = true;
  }

  open(id) {
    this.clear();
    this.opening = this.load(id);
    return this.opening;
  }

  async load(id) {
    const leave = this.leave;
    const found = await request("GET", `/page/conversations/${id}`);
    if (leave.signal.aborted) return;
    this.id = id;
    this.length = found.length;
    this.showTitle(found.title);
    $("effort").value = found.effort;
    this.tools.set(found.tools_off);
    this.showInstructions(found.instructions);
    $("menu").hidden = false;
    this.showParts(found.parts);
    this.showContext(found.context);
    this.scrollToEnd();
    if (found.reply) this.follow(found.reply).catch((error) => this.report(error));
  }

  showParts(parts) {
    let view = null;
    for (const part of parts) {
      if (part.kind === "user") {
        this.showQuestion(part.text, part.entry);
        view = null;
      } else {
        view ??= this.newReply(part.entry);
        view.showStored(part);
      }
    }
    for (const reply of this.messages.querySelectorAll(".reply")) this.addReplyActions(reply);
  }

  showQuestion(text, entry) {
    const shown = element("div", { class: "text", dir: "auto" }, text);
    const edit = element("button", { type: "button", class: "quiet", onclick: () => this.edit(article, text, entry) }, "Edit");
    const article = element("article", { class: "question", "aria-label": "Your message" }, shown, element("div", { class: "actions" }, edit));
    article.dataset.entry = entry;
    this.append(article);
    return article;
  }

  newReply(entry) {
    const view = new ReplyView((part, decision) =>
      request("POST", `/page/replies/${this.reply}/approvals/${part}`, decision).catch((error) => this.report(error)),
    );
    view.element.view = view;
    view.element.dataset.entry = entry;
    this.append(view.element);
    return view;
  }

  append(article) {
    this.messages.append(article);
    this.sizes.observe(article);
  }

  addReplyActions(reply) {
    if (reply.querySelector(":scope > .actions")) return;
    const entry = Number(reply.dataset.entry);
    const next = () => {
      const after = reply.nextElementSibling;
      return after ? Number(after.dataset.entry ?? this.length) : this.length;
    };
    const button = (name, action) => element("button", { type: "button", class: "quiet", onclick: action }, name);
    reply.append(
      element(
        "div",
        { class: "actions" },
        button("Copy", () => this.copy(reply.view.answer)),
        button("Regenerate", () => this.regenerate(entry)),
        button("Branch", () => this.branch(next()).catch((error) => this.report(error))),
      ),
    );
  }

  async send(text, keep) {
    const leave = this.leave;
    this.stopping = false;
    this.showRunning(true);
    try {
      await this.opening; // of which the question is the next one
      if (leave.signal.aborted) throw new Error("Not sent: another conversation is shown now.");
      await this.begin(text, keep);
    } catch (error) {
      if (!leave.signal.aborted) this.showRunning(false);
      throw error;
    }
    if (leave.signal.aborted) return; // it runs on
    if (this.stopping) this.stop().catch((error) => this.report(error));
    this.follow(this.reply).catch((error) => this.report(error)); // the question has been sent
  }

  // Shows what another tab or the terminal has added; `listed` is what the list has of it.
  async catchUp(listed) {
    const editing = this.messages.querySelector(".question textarea");
    if (!listed || listed.id !== this.id || this.running || editing) return;
    if (listed.length !== this.length) await this.open(this.id);
  }

  // Sends a question; the answer comes when the model has been loaded.
  async begin(text, keep) {
    const leave = this.leave;
    const early = keep === undefined ? this.showQuestion(text, this.length) : null;
    this.scrollToEnd();
    const body = {
      text,
      effort: $("effort").value,
      conversation: this.id ?? undefined,
      keep,
      instructions: $("instructions").value,
      tools_off: this.tools.get(),
    };
    let made;
    try {
      made = await request("POST", "/page/replies", body);
    } catch (error) {
      early?.remove();
      if (error.status === 409 && !leave.signal.aborted) await this.open(this.id); // another tab's
      throw error;
    }
    if (leave.signal.aborted) return;
    if (this.id !== null && made.conversation.length !== (keep ?? this.length)) {
      // Another tab or the terminal has gone on meanwhile.
      this.changed(made.conversation);
      await this.open(this.id);
      return;
    }
    this.reply = made.reply;
    const isNew = this.id === null;
    this.id = made.conversation.id;
    if (keep !== undefined) {
      this.cutTo(keep);
      this.showQuestion(text, this.length);
    }
    this.length += 1;
    if (isNew) this.showTitle(made.conversation.title);
    $("menu").hidden = false;
    this.changed(made.conversation);
    this.scrollToEnd();
  }

  cutTo(keep) {
    for (const shown of [...this.messages.children]) {
      if (Number(shown.dataset.entry) < keep) continue;
      shown.view?.release();
      shown.remove();
    }
    this.length = keep;
  }

  // Reads a reply to its end.
  async follow(id) {
    const leave = this.leave;
    this.reply = id;
    this.showRunning(true);
    const view = this.newReply(this.length);
    this.view = view;
    view.element.ariaBusy = "true";
    try {
      const retrying = (failures) => {
        $("status").textContent = failures ? "The connection is lost. Trying again…" : "";
      };
      for await (const events of replyEvents(id, leave.signal, retrying)) {
        for (const event of events) {
          view.apply(event);
          this.note(event);
        }
        $("answer-now").hidden = !view.reasoning;
      }
    } catch (error) {
      if (!leave.signal.aborted) this.report(error);
      if (error.status === 404) await this.recover(view);
    }
    if (leave.signal.aborted) return;
    view.element.ariaBusy = "false";
    try {
      await this.refresh(); // the next question's place is known after it
    } finally {
      if (!leave.signal.aborted) {
        this.reply = null;
        this.showRunning(false);
      }
    }
  }

  // The server does not know the reply any more: it ended a while ago, or the server was restarted.
  async recover(view) {
    const leave = this.leave;
    const { length } = await request("GET", `/page/conversations/${this.id}`);
    if (leave.signal.aborted) return;
    if (length > this.length) return this.open(this.id);
    $("status").textContent = "";
    view.apply({ type: "error", message: "The server was restarted during this reply, and it was not kept. Regenerate asks again." });
  }

  // The stored conversation says what was kept of the reply.
  async refresh() {
    const leave = this.leave;
    const found = await request("GET", `/page/conversations/${this.id}`);
    if (leave.signal.aborted) return;
    this.length = found.length;
    for (const reply of this.messages.querySelectorAll(".reply")) this.addReplyActions(reply);
    this.changed(found);
  }

  note(event) {
    if (event.type === "prompt") {
      const share = Math.floor((100 * event.done) / event.total);
      $("status").textContent = share < 100 ? `Reading the prompt: ${share}%` : "";
    } else if (event.type === "part") {
      $("status").textContent = event.kind === "reasoning" ? "Reasoning" : "";
    } else if (event.type === "running") {
      $("status").textContent = `Running ${event.name}`;
    } else if (event.type === "approval") {
      $("status").textContent = `${event.name} waits until it is allowed`;
    } else if (event.type === "result") {
      $("status").textContent = "";
    } else if (event.type === "done") {
      const usage = event.usage;
      const end = event.cut === "cancelled" ? "Stopped" : "Done";
      $("status").textContent = usage?.generated
        ? `${end}: ${usage.generated} tokens, ${usage.tokens_per_second} a second`
        : end;
      this.showContext(event.context);
    }
  }

  regenerate(entry) {
    const question = [...this.messages.querySelectorAll(".question")]
      .filter((it) => Number(it.dataset.entry) < entry)
      .at(-1);
    if (question && !this.running) {
      this.send(question.querySelector(".text").textContent, Number(question.dataset.entry)).catch((error) => this.report(error));
    }
  }

  async branch(keep) {
    const made = await request("POST", `/page/conversations/${this.id}/branch`, { keep });
    this.changed(made);
    await this.open(made.id);
    const cells = this.messages.querySelector('[data-tool="python"]');
    const lost = cells ? " Python starts anew: variables are not copied." : "";
    $("status").textContent = `This is a copy; the conversation before it is unchanged.${lost}`;
  }

  edit(article, text, entry) {
    if (this.running) return;
    const field = element("textarea", { value: text, rows: Math.min(12, text.split("\n").length + 1), dir: "auto", ariaLabel: "Edit your message" });
    const before = [...article.children];
    const send = () => field.value.trim() && this.send(field.value, entry).catch((error) => this.report(error));
    const cancel = () => {
      article.replaceChildren(...before);
      article.querySelector("button").focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        cancel();
      }
    });
    const buttons = element(
      "div",
      { class: "row" },
      element("button", { type: "button", class: "quiet", onclick: cancel }, "Cancel"),
      element("button", { type: "button", onclick: send }, "Send"),
    );
    article.replaceChildren(field, buttons);
    field.focus();
  }

  async stop() {
    if (!this.reply) {
      this.stopping = true; // as soon as the server has the question
      $("status").textContent = "Stopping";
    } else await request("POST", `/page/replies/${this.reply}/stop`);
  }

  async answerNow() {
    $("answer-now").hidden = true;
    this.view.reasoning = false;
    if (this.reply) await request("POST", `/page/replies/${this.reply}/answer-now`);
  }

  async copy(text) {
    try {
      // Browsers have it for pages of this machine, and over HTTPS.
      if (!navigator.clipboard) throw new Error("no access to the clipboard without HTTPS; select the text");
      await navigator.clipboard.writeText(text);
      $("status").textContent = "Copied";
    } catch (error) {
      $("status").textContent = `Not copied: ${error.message}`;
    }
  }

  asText() {
    return [...this.messages.children]
      .map((it) => (it.view ? it.view.answer : `> ${it.querySelector(".text")?.textContent.replaceAll("\n", "\n> ")}`))
      .join("\n\n");
  }

  showTitle(title) {
    $("title").textContent = title;
    document.title = `${title} – gpt-oss`;
  }

  showContext(context) {
    $("context").hidden = !context;
    if (!context) return;
    $("used").value = context.used / context.n_ctx;
    $("used-text").textContent = `${context.used.toLocaleString()} of ${context.n_ctx.toLocaleString()} tokens`;
  }

  showInstructions(text) {
    if (text !== undefined) $("instructions").value = text;
    $("system-summary").textContent = $("instructions").value.trim() ? "Instructions: on" : "Instructions";
  }

  showWay() {
    $("to-end").hidden = this.isAtEnd();
  }

  showRunning(running) {
    this.running = running;
    $("stop").hidden = !running;
    $("send").hidden = running;
    if (!running) $("answer-now").hidden = true;
  }

  report(error) {
    $("status").textContent = error.message;
  }

  isAtEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.messages;
    return scrollHeight - scrollTop - clientHeight < 80;
  }

  scrollToEnd() {
    this.atEnd = true;
    this.messages.scrollTop = this.messages.scrollHeight;
  }
}
