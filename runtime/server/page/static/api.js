// Talks with the server: the key, JSON requests, and event streams that survive a lost connection.

const KEY = "gptoss-key";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// The server cannot be reached: it has ended, or the network is down.
export class LostError extends Error {
  constructor() {
    super("The server does not answer. Check that gptoss-run serve is running.");
  }
}

// Exchanges the token of a one-time link for the key, and takes it out of the address.
export async function login() {
  const token = new URLSearchParams(location.hash.slice(1)).get("login");
  if (!token) return;
  history.replaceState(null, "", location.pathname);
  const { key } = await request("POST", "/page/login", { token });
  if (key) localStorage.setItem(KEY, key);
}

export async function request(method, path, body) {
  const response = await send(method, path, body);
  return response.json();
}

// The address, within this page, of a picture that needs the key.
export async function pictureURL(path) {
  const response = await send("GET", path);
  return URL.createObjectURL(await response.blob());
}

async function send(method, path, body, signal) {
  const headers = {};
  const key = localStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      signal,
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new LostError();
  }
  if (!response.ok) throw new ApiError(response.status, await problem(response));
  return response;
}

async function problem(response) {
  if (response.status === 401) {
    return "This browser has no valid key. Open the link that gptoss-run serve prints.";
  }
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

// Yields arrays of the events of a reply. Reads on after a lost connection; ends after the last.
// `retrying(failures)` is called before another attempt, and with 0 when one has gone well.
export async function* replyEvents(id, signal, retrying) {
  let after = 0;
  for (let failures = 0; ; failures++) {
    try {
      const response = await send("GET", `/page/replies/${id}/events?after=${after}`, undefined, signal);
      for await (const batch of readEvents(response.body)) {
        if (failures) retrying(0);
        failures = 0;
        after = batch.at(-1).number + 1;
        yield batch.map((it) => it.event);
        if (batch.some((it) => ["done", "error"].includes(it.event.type))) return;
      }
      if (failures > 3) return;
    } catch (error) {
      if (signal.aborted || (error instanceof ApiError && error.status < 500) || failures > 20) throw error;
    }
    retrying(failures + 1);
    await new Promise((resolve) => setTimeout(resolve, Math.min(5000, 250 * 2 ** failures)));
  }
}

async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const whole = text.split("\n\n");
    text = whole.pop();
    const batch = whole.map(parse).filter((it) => it !== null);
    if (batch.length) yield batch;
  }
}

function parse(block) {
  const match = /^id: (\d+)\ndata: (.*)$/s.exec(block);
  return match && { number: Number(match[1]), event: JSON.parse(match[2]) };
}
