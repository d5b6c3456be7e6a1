// Asks a gateway with OpenAI's own client for Node: node ask.mjs BASE_URL [KEY] [MODEL]
// Prints what it got, and exits with status 1 if anything is not as OpenAI's protocol has it.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, apiKey = "none", model = "babylon-mmo"] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, defaultHeaders: { "x-babylon-agent": "node-1" } });
const messages = [{ role: "system", content: "You trade." }, { role: "user", content: "BUY or SELL?" }];

const models = [];
for await (const m of client.models.list()) models.push(m.id);
console.log("models   ", models.join(", "));
assert(models.includes(model));

const { data: whole, response } = await client.chat.completions
  .create({ model, messages, max_tokens: 40, seed: 7, temperature: 1 })
  .withResponse();
console.log("answer   ", whole.model, whole.id, JSON.stringify(whole.choices[0].message.content), whole.usage);
console.log("headers  ", response.headers.get("x-babylon-policy"), response.headers.get("x-babylon-arm"));
assert.equal(whole.id, response.headers.get("x-babylon-call"));

const began = performance.now();
const pieces = [];
let usage, reason, first;
const stream = await client.chat.completions.create({
  model, messages, max_tokens: 40, seed: 7, temperature: 1, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  const piece = chunk.choices[0]?.delta?.content;
  if (piece) first ??= performance.now() - began;
  if (piece) pieces.push(piece);
  reason = chunk.choices[0]?.finish_reason ?? reason;
  usage = chunk.usage ?? usage;
}
const took = performance.now() - began;
console.log("stream   ", pieces.length, "pieces, the first after", Math.round(first), "of", Math.round(took), "ms:", JSON.stringify(pieces), reason, usage);
assert.equal(pieces.join(""), whole.choices[0].message.content);
assert.deepEqual(usage, whole.usage);

const left = await client.chat.completions.create({ model, messages, max_tokens: 1000, temperature: 2, stream: true });
for await (const chunk of left) if (chunk.choices[0]?.delta?.content) break; // leaves: the client aborts its request
console.log("left      a stream after its first piece");

for (const [what, ask] of [
  ["unknown model", () => client.chat.completions.create({ model: "gpt-4", messages })],
  ["completions", () => client.completions.create({ model, prompt: "x" })],
  ["ten megabytes", () => client.chat.completions.create({ model, messages: [{ role: "user", content: "x".repeat(1e7) }] })],
]) {
  const e = await ask().then(() => assert.fail(`${what} was answered`), (e) => e);
  console.log("refused  ", what, "→", e.constructor.name, e.status, e.code, "·", e.error?.message?.slice(0, 90));
  assert(e instanceof OpenAI.APIError && e.status >= 400);
}
