// What OpenAI's npm package makes of a gateway: each scenario's outcome, as one JSON object on stdout.
// Wanted in the environment: OPENAI_BASE_URL, OPENAI_API_KEY, SWARM_ASKED (JSON: model, nobodys, question, tokens).

import OpenAI from "openai";

const { model, nobodys, question, tokens } = JSON.parse(process.env.SWARM_ASKED);
const client = new OpenAI({ maxRetries: 0 });
const asked = { model, messages: [{ role: "user", content: question }], max_tokens: tokens, temperature: 0 };
const town = {
  type: "object",
  properties: { town: { enum: ["Paris", "Lyon"] } },
  required: ["town"],
  additionalProperties: false,
};
const weather = { type: "function", function: { name: "get_weather", strict: true, parameters: town } };
const one = { tool_choice: "required", parallel_tool_calls: false };
const calling = { ...asked, max_tokens: 60, tools: [weather], ...one };

async function errorOf(request) {
  try {
    await request();
  } catch (error) {
    return { class: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
  return { class: null };
}

const scenarios = {
  async plain() {
    const answer = await client.chat.completions.create(asked);
    return { text: answer.choices[0].message.content, usage: answer.usage };
  },

  async streamed() {
    const stream = await client.chat.completions.create({
      ...asked,
      stream: true,
      stream_options: { include_usage: true },
    });
    const chunks = [];
    for await (const chunk of stream) chunks.push(chunk);
    const last = chunks.pop();
    return {
      text: chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""),
      reason: chunks.at(-1).choices[0].finish_reason,
      usage: last.usage,
    };
  },

  async seeded() {
    const wanted = { ...asked, temperature: 1.5, seed: 7, n: 2 };
    const texts = async () => (await client.chat.completions.create(wanted)).choices.map((one) => one.message.content);
    return { once: await texts(), again: await texts() };
  },

  async stopped() {
    const answer = await client.chat.completions.create({ ...asked, stop: "a" });
    return { text: answer.choices[0].message.content, reason: answer.choices[0].finish_reason };
  },

  async logprobs() {
    const answer = await client.chat.completions.create({ ...asked, logprobs: true, top_logprobs: 2 });
    return answer.choices[0].logprobs.content;
  },

  async tools() {
    const { message, finish_reason: reason } = (await client.chat.completions.create(calling)).choices[0];
    const stream = client.chat.completions.stream(calling);
    const streamed = (await stream.finalChatCompletion()).choices[0].message;
    const shown = (one) => one.tool_calls.map((call) => [call.function.name, call.function.arguments]);
    return { calls: shown(message), streamed: shown(streamed), reason };
  },

  async schema() {
    const response_format = { type: "json_schema", json_schema: { name: "town", strict: true, schema: town } };
    const answer = await client.chat.completions.create({ ...asked, max_tokens: 60, response_format });
    return JSON.parse(answer.choices[0].message.content);
  },

  async responses() {
    const answer = await client.responses.create({
      model,
      input: question,
      temperature: 0,
      max_output_tokens: tokens,
    });
    return { text: answer.output_text };
  },

  async cancelled() {
    const stream = await client.chat.completions.create({ ...asked, max_tokens: 4000, stream: true });
    let chunks = 0;
    for await (const chunk of stream) {
      chunks += chunk.choices.length;
      if (chunks === 3) stream.controller.abort();
    }
    return { chunks };
  },

  async errors() {
    const create = (changes) => () => client.chat.completions.create({ ...asked, ...changes });
    const stranger = new OpenAI({ maxRetries: 0, apiKey: "sk-not-a-key-of-this-gateway" });
    return {
      key: await errorOf(() => stranger.models.list()),
      model: await errorOf(create({ model: "gpt-9" })),
      field: await errorOf(create({ temperature: 9 })),
      long: await errorOf(create({ messages: [{ role: "user", content: "word ".repeat(9000) }] })),
      peers: await errorOf(create({ model: nobodys })),
    };
  },
};

const outcomes = {};
for (const [name, scenario] of Object.entries(scenarios)) {
  try {
    outcomes[name] = await scenario();
  } catch (error) {
    outcomes[name] = { failed: String(error.stack ?? error) };
  }
}
console.log(JSON.stringify(outcomes));
