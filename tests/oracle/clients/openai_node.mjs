// OpenAI's npm package against the server: node openai_node.mjs BASE_URL; key in GPTOSS_API_KEY.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const baseURL = process.argv[2];
const client = new OpenAI({ baseURL, apiKey: process.env.GPTOSS_API_KEY, maxRetries: 0 });
const model = "tiny";
const say = (content) => [{ role: "user", content }];
const parameters = {
  type: "object",
  properties: { city: { type: "string" } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const Person = z.object({ name: z.string(), age: z.number() });

const checks = {
  async models() {
    const listed = [];
    for await (const it of client.models.list()) listed.push(it.id);
    assert.deepEqual(listed, ["tiny", "gpt-oss-20b"]);
  },
  async chat() {
    const completion = await client.chat.completions.create({ model, messages: say("Hi") });
    const [choice] = completion.choices;
    assert.equal(choice.message.content, "Hello.");
    assert.equal(choice.message.reasoning, "Thinking about it.");
    assert.equal(choice.finish_reason, "stop");
    assert.ok(completion.usage.total_tokens > 0);
  },
  async chatStream() {
    const stream = client.chat.completions.stream({ model, messages: say("Hi") });
    let text = "";
    stream.on("content", (delta) => (text += delta));
    const last = await stream.finalChatCompletion();
    assert.equal(text, "Hello.");
    assert.equal(last.choices[0].message.content, "Hello.");
  },
  async chatTools() {
    const seen = [];
    const runner = client.chat.completions.runTools({
      model,
      messages: say("Weather in Oslo?"),
      stream: true,
      tools: [
        {
          type: "function",
          function: {
            name: "get_weather",
            parameters,
            parse: JSON.parse,
            function: ({ city }) => (seen.push(city), "rain"),
          },
        },
      ],
    });
    assert.equal(await runner.finalContent(), "The tool said so.");
    assert.deepEqual(seen, ["Oslo"]);
  },
  async chatParse() {
    const parsed = await client.chat.completions.parse({
      model,
      messages: say("Invent a person."),
      response_format: zodResponseFormat(Person, "person"),
    });
    assert.deepEqual(parsed.choices[0].message.parsed, { name: "Ada", age: 36 });
  },
  async responses() {
    const response = await client.responses.create({ model, input: "Hi" });
    assert.equal(response.output_text, "Hello.");
    assert.equal(response.output[0].type, "reasoning");
    const next = await client.responses.create({
      model,
      input: "Hi again",
      previous_response_id: response.id,
    });
    assert.equal(next.output_text, "Hello.");
  },
  async responsesStream() {
    const stream = client.responses.stream({ model, input: "Hi" });
    const kinds = new Set();
    for await (const event of stream) kinds.add(event.type);
    assert.ok(kinds.has("response.reasoning_text.delta"));
    assert.equal((await stream.finalResponse()).output_text, "Hello.");
  },
  async responsesTools() {
    const response = await client.responses.create({
      model,
      input: "Weather in Oslo?",
      tools: [{ type: "function", name: "get_weather", parameters, strict: true }],
    });
    const call = response.output.find((item) => item.type === "function_call");
    assert.deepEqual(JSON.parse(call.arguments), { city: "Oslo" });
    const next = await client.responses.create({
      model,
      previous_response_id: response.id,
      input: [{ type: "function_call_output", call_id: call.call_id, output: "rain" }],
    });
    assert.equal(next.output_text, "The tool said so.");
  },
  async responsesParse() {
    const parsed = await client.responses.parse({
      model,
      input: "Invent a person.",
      text: { format: zodTextFormat(Person, "person") },
    });
    assert.deepEqual(parsed.output_parsed, { name: "Ada", age: 36 });
  },
  async cancelChat() {
    const stream = await client.chat.completions.create({
      model,
      messages: say("count without an end"),
      stream: true,
    });
    for await (const chunk of stream) {
      if (chunk.choices[0]?.delta?.content) break; // closes the connection
    }
  },
  async cancelResponses() {
    const stream = await client.responses.create({
      model,
      input: "count without an end",
      stream: true,
    });
    for await (const event of stream) {
      if (event.type === "response.output_text.delta") stream.controller.abort();
    }
  },
  async errors() {
    const messages = say("Hi");
    const refused = (promise, kind) => assert.rejects(promise, kind);
    await refused(
      client.chat.completions.create({ model: "other", messages }),
      OpenAI.NotFoundError,
    );
    await refused(client.chat.completions.create({ model, messages: [] }), OpenAI.BadRequestError);
    await refused(client.responses.create({ model, input: 1 }), OpenAI.BadRequestError);
    const stranger = new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 });
    await refused(stranger.models.list(), OpenAI.AuthenticationError);
    const image = { type: "image_url", image_url: { url: "data:image/png;base64," } };
    await refused(
      client.chat.completions.create({ model, messages: say([image]), tools }),
      OpenAI.BadRequestError,
    );
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
