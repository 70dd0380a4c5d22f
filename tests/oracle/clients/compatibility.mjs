// Runs every case through the Agents SDK: chat completions and responses, whole and streamed.
// Usage: node compatibility.mjs BASE_URL CASES.json; the key is in GPTOSS_API_KEY.
// Prints one JSON line per run: {id, api, stream, called, reasoning, output, events, error}.
import { readFileSync } from "node:fs";
import OpenAI from "openai";
import { Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, tool } from "@openai/agents";

const [baseURL, path] = process.argv.slice(2);
const cases = JSON.parse(readFileSync(path, "utf-8"));
const client = new OpenAI({ baseURL, apiKey: process.env.GPTOSS_API_KEY, maxRetries: 0 });
const models = {
  chat: new OpenAIChatCompletionsModel(client, "tiny"),
  responses: new OpenAIResponsesModel(client, "tiny"),
};
const runner = new Runner({ tracingDisabled: true });

async function runCase(it, api, stream) {
  const called = [];
  const events = {};
  const agent = new Agent({
    name: "tester",
    instructions: "Use the tool, then answer.",
    model: models[api],
    tools: [
      tool({
        name: it.tool.name,
        description: it.tool.description,
        parameters: it.tool.parameters,
        strict: false,
        execute: (input) => {
          called.push(input);
          return JSON.stringify({ done: true });
        },
      }),
    ],
  });
  const count = (name) => (events[name] = (events[name] ?? 0) + 1);
  let result;
  let streamedReasoning = "";
  if (stream) {
    result = await runner.run(agent, it.question, { stream: true });
    for await (const event of result) {
      if (event.type !== "raw_model_stream_event") continue;
      const raw = event.data.type === "model" ? event.data.event : null;
      if (raw?.object === "chat.completion.chunk") {
        count("chunk");
        streamedReasoning += raw.choices[0]?.delta?.reasoning ?? "";
      } else if (raw?.type) {
        count(raw.type);
        if (raw.type === "response.reasoning_text.delta") streamedReasoning += raw.delta;
      }
    }
    await result.completed;
  } else {
    result = await runner.run(agent, it.question);
  }
  const items = result.rawResponses.flatMap((response) => response.output);
  const reasoning = items
    .filter((item) => item.type === "reasoning")
    .flatMap((item) => item.rawContent ?? item.providerData?.content ?? [])
    .map((part) => part.text)
    .join("");
  return { called, reasoning, streamedReasoning, output: result.finalOutput, events };
}

for (const api of ["chat", "responses"]) {
  for (const stream of [false, true]) {
    await Promise.all(
      cases.map(async (it) => {
        const line = { id: it.id, api, stream };
        try {
          Object.assign(line, await runCase(it, api, stream));
        } catch (error) {
          line.error = String(error?.stack ?? error);
        }
        console.log(JSON.stringify(line));
      }),
    );
  }
}
