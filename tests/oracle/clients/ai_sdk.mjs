// Vercel's AI SDK with its provider for OpenAI-compatible servers: node ai_sdk.mjs BASE_URL.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({
  name: "gptoss",
  baseURL: process.argv[2],
  apiKey: process.env.GPTOSS_API_KEY,
  supportsStructuredOutputs: true,
  includeUsage: true,
});
const model = provider("tiny");
const seen = [];
const tools = {
  get_weather: tool({
    description: "The weather.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => (seen.push(city), "rain"),
  }),
};

const checks = {
  async text() {
    const result = await generateText({ model, prompt: "Hi", maxRetries: 0 });
    assert.equal(result.text, "Hello.");
    assert.equal(result.reasoningText, "Thinking about it.");
    assert.equal(result.finishReason, "stop");
    assert.ok(result.usage.totalTokens > 0);
  },
  async stream() {
    const result = streamText({ model, prompt: "Hi", maxRetries: 0 });
    let text = "";
    let reasoning = "";
    for await (const part of result.fullStream) {
      assert.notEqual(part.type, "error", JSON.stringify(part));
      if (part.type === "text-delta") text += part.text;
      if (part.type === "reasoning-delta") reasoning += part.text;
    }
    assert.equal(text, "Hello.");
    assert.equal(reasoning, "Thinking about it.");
    assert.ok((await result.usage).outputTokens > 0);
  },
  async tools() {
    const result = await generateText({
      model,
      prompt: "Weather in Oslo?",
      tools,
      stopWhen: stepCountIs(3),
      maxRetries: 0,
    });
    assert.equal(result.text, "The tool said so.");
    assert.deepEqual(seen.splice(0), ["Oslo"]);
  },
  async streamedTools() {
    const result = streamText({
      model,
      prompt: "Weather in Oslo?",
      tools,
      stopWhen: stepCountIs(3),
      maxRetries: 0,
    });
    const kinds = new Set();
    for await (const part of result.fullStream) kinds.add(part.type);
    assert.ok(kinds.has("tool-call") && kinds.has("tool-result") && !kinds.has("error"));
    assert.equal(await result.text, "The tool said so.");
    assert.deepEqual(seen.splice(0), ["Oslo"]);
  },
  async object() {
    const schema = z.object({ name: z.string(), age: z.number() });
    const prompt = "Invent a person.";
    const result = await generateObject({ model, schema, prompt, maxRetries: 0 });
    assert.deepEqual(result.object, { name: "Ada", age: 36 });
  },
  async cancel() {
    const abort = new AbortController();
    const result = streamText({
      model,
      prompt: "count without an end",
      abortSignal: abort.signal,
      maxRetries: 0,
    });
    const kinds = [];
    for await (const part of result.fullStream) {
      if (kinds.push(part.type) && part.type === "text-delta") abort.abort();
    }
    assert.ok(kinds.includes("abort"));
  },
  async errors() {
    const failing = generateText({ model: provider("other"), prompt: "Hi", maxRetries: 0 });
    await assert.rejects(failing, (error) => {
      assert.ok(APICallError.isInstance(error));
      assert.equal(error.statusCode, 404);
      assert.match(error.message, /other/);
      return true;
    });
  },
};

for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log(JSON.stringify({ name }));
  } catch (error) {
    console.log(JSON.stringify({ name, error: String(error?.stack ?? error) }));
  }
}
