// Starts the page: login, the list, the conversation, keys.

import { LostError, login, request } from "./api.js";
import { ConversationView } from "./conversation.js";
import { Sidebar } from "./sidebar.js";
import { ToolSwitches } from "./tools.js";

const DRAFT = "gptoss-draft";
const MAX_ROWS = 10;

const $ = (id) => document.getElementById(id);
const report = (error) => {
  $("status").textContent = error.message;
};

const sidebar = new Sidebar((id) => go(id), report);
const tools = new ToolSwitches();
const conversation = new ConversationView(tools, (summary) => {
  if (idInAddress() !== summary.id) address(idInAddress() ? "pushState" : "replaceState", summary.id);
  sidebar.current = summary.id;
  sidebar.load().catch(report);
});

function idInAddress() {
  return location.hash.slice(1) || null;
}

function address(method, id) {
  history[method](null, "", id ? `#${id}` : location.pathname);
}

// Shows a conversation, or a new one. `change` is how the address gets to it.
async function go(id, change = "pushState") {
  try {
    sidebar.set(false);
    sidebar.mark(id);
    if (id !== idInAddress()) address(change, id);
    if (id) await conversation.open(id);
    else conversation.clear();
    focusQuestion();
  } catch (error) {
    report(error);
  }
}

// Not on a phone, where it would open the keyboard.
function focusQuestion() {
  if (matchMedia("(pointer: fine)").matches) $("question").focus();
}

function submit() {
  const field = $("question");
  const text = field.value;
  if (!text.trim() || conversation.running) return;
  type("");
  conversation.send(text).catch((error) => {
    type(field.value ? `${text}\n${field.value}` : text); // something may have been typed meanwhile
    report(error);
  });
}

function type(text) {
  $("question").value = text;
  typed();
}

// What is typed survives a reload of this tab, and has as many rows as it needs.
function typed() {
  const field = $("question");
  try {
    sessionStorage.setItem(DRAFT, field.value);
  } catch {
    sessionStorage.removeItem(DRAFT); // longer than what a browser keeps
  }
  field.rows = 1;
  const { lineHeight, paddingTop, paddingBottom } = getComputedStyle(field);
  const height = field.scrollHeight - parseFloat(paddingTop) - parseFloat(paddingBottom);
  field.rows = Math.min(MAX_ROWS, Math.max(1, Math.round(height / parseFloat(lineHeight))));
}

const ACTIONS = {
  rename: async () => {
    const title = prompt("Title", $("title").textContent);
    if (!title?.trim()) return;
    const changed = await request("PATCH", `/page/conversations/${conversation.id}`, { title });
    conversation.showTitle(changed.title);
    await sidebar.load();
  },
  copy: () => conversation.copy(conversation.asText()),
  export: async () => {
    const content = await request("GET", `/page/conversations/${conversation.id}/export`);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 2)], { type: "application/json" }));
    link.download = "conversation.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // some browsers read it later
  },
  delete: async () => {
    if (!confirm("Delete this conversation? This cannot be undone.")) return;
    await request("DELETE", `/page/conversations/${conversation.id}`);
    await go(null, "replaceState");
    await sidebar.load();
  },
};

// A file that was exported here, or that /save wrote in the terminal: a list of messages.
async function importFile(file) {
  let content;
  try {
    content = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is not a JSON file.`);
  }
  if (Array.isArray(content)) content = { messages: content };
  const { messages, title, settings } = content ?? {};
  if (!Array.isArray(messages)) throw new Error(`${file.name} holds no exported conversation.`);
  const made = await request("POST", "/page/conversations", { messages, title, settings });
  await go(made.id);
  await sidebar.load();
}

let version = null;

async function showStatus() {
  const status = await request("GET", "/page/status");
  version ??= status.version;
  if (status.version !== version) $("status").textContent = "The server was updated. Reload the page.";
  $("model").textContent = status.model;
  $("plan").textContent = status.plan || `${status.n_ctx.toLocaleString()} tokens of context`;
  if (status.state === "loading") {
    $("status").textContent = `Loading the model: ${Math.round(100 * status.progress)}%`;
    setTimeout(() => showStatus().catch(report), 500);
  } else if (status.error) {
    $("status").textContent = `The model cannot be loaded: ${status.error}`;
  } else if ($("status").textContent.startsWith("Loading")) {
    $("status").textContent = "The model is loaded.";
  }
}

// What has changed while the page was not looked at: other tabs and the terminal use the store too.
async function comeBack() {
  if (document.hidden) return;
  try {
    const listed = await sidebar.load();
    await conversation.catchUp(listed.find((it) => it.id === conversation.id));
    if ($("status").textContent === new LostError().message) $("status").textContent = "";
    await showStatus();
  } catch (error) {
    report(error);
  }
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("import").addEventListener("click", () => $("import-file").click());
$("import-file").addEventListener("change", () => {
  const [file] = $("import-file").files;
  if (file) importFile(file).catch(report);
  $("import-file").value = ""; // so that the same file can be chosen again
});
$("question").addEventListener("input", typed);
addEventListener("resize", typed);
addEventListener("focus", comeBack);
addEventListener("online", comeBack);
document.addEventListener("visibilitychange", comeBack);
addEventListener("popstate", () => {
  // A link of the server that was pasted into this tab changes the address alone.
  if (location.hash.startsWith("#login=")) location.reload();
  else go(idInAddress());
});
// Its own address would be taken for a conversation.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("question").focus();
});
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
$("stop").addEventListener("click", () => conversation.stop().catch(report));
$("answer-now").addEventListener("click", () => conversation.answerNow().catch(report));
$("new").addEventListener("click", () => go(null));
for (const button of document.querySelectorAll("[data-action]")) {
  button.addEventListener("click", () => {
    $("menu").open = false;
    ACTIONS[button.dataset.action]().catch(report);
  });
}
// A menu closes when something else is clicked, or by Escape.
const menus = [...document.querySelectorAll("details.menu")];
document.addEventListener("click", (event) => {
  for (const menu of menus) if (!menu.contains(event.target)) menu.open = false;
});
document.addEventListener("keydown", (event) => {
  const open = menus.find((menu) => menu.open);
  if (event.key === "Escape" && open) {
    open.open = false;
    open.querySelector("summary").focus();
    return;
  }
  if (event.key === "Escape" && sidebar.isOver) return sidebar.show(false);
  if (event.key === "Escape" && conversation.running) conversation.stop().catch(report);
  if (event.ctrlKey && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    go(null);
  }
  if (event.ctrlKey && !event.shiftKey && event.key.toLowerCase() === "k") {
    event.preventDefault();
    if ($("show-sidebar").checkVisibility()) sidebar.show(true);
    else $("search").focus();
  }
});

try {
  type(sessionStorage.getItem(DRAFT) ?? "");
  await login();
  await Promise.all([sidebar.load(), showStatus()]);
  tools.load().catch(report);
  if (idInAddress()) await go(idInAddress());
  else focusQuestion();
} catch (error) {
  report(error);
}
