// Starts the page: login, the list, the conversation, keys.

import { login, request } from "./api.js";
import { ConversationView } from "./conversation.js";
import { Sidebar } from "./sidebar.js";
import { ToolSwitches } from "./tools.js";

const $ = (id) => document.getElementById(id);
const report = (error) => {
  $("status").textContent = error.message;
};

const sidebar = new Sidebar((id) => go(id), report);
const tools = new ToolSwitches();
const conversation = new ConversationView(tools, (summary) => {
  if (location.hash.slice(1) !== summary.id) history.replaceState(null, "", `#${summary.id}`);
  sidebar.current = summary.id;
  sidebar.load().catch(report);
});

async function go(id) {
  try {
    document.body.classList.remove("with-sidebar");
    $("shade").hidden = true;
    sidebar.mark(id);
    history.replaceState(null, "", id ? `#${id}` : location.pathname);
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
  field.value = "";
  fit();
  conversation.send(text).catch((error) => {
    field.value = text;
    fit();
    report(error);
  });
}

function fit() {
  const field = $("question");
  field.rows = Math.min(10, Math.max(1, field.value.split("\n").length));
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
    await go(null);
    await sidebar.load();
  },
};

async function showStatus() {
  const status = await request("GET", "/page/status");
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

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("question").addEventListener("input", fit);
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
  if (event.key === "Escape" && conversation.running) conversation.stop().catch(report);
  if (event.ctrlKey && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    go(null);
  }
});

try {
  await login();
  await Promise.all([sidebar.load(), showStatus()]);
  tools.load().catch(report);
  const id = location.hash.slice(1);
  if (id) await go(id);
  else focusQuestion();
} catch (error) {
  report(error);
}
