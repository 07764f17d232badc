// What the openai client of JavaScript makes of the server: one object of JSON. Arguments: the packages' folder, a base URL, a
// model.
import { createRequire } from "node:module";

const [packages, baseURL, model] = process.argv.slice(2);
const require = createRequire(`${packages}/`);
const { OpenAI, toFile } = require("openai");
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const asked = { model, messages: [{ role: "user", content: "hello" }], max_tokens: 24, seed: 11, steps: 12 };

const whole = await client.chat.completions.create(asked);
const streamed = { text: "", tokens: {} };
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true, stream_mode: "denoise" })) {
  streamed.text += chunk.choices[0]?.delta.content ?? "";
  chunk.denoise?.positions.forEach((position, n) => (streamed.tokens[position] = chunk.denoise.tokens[n]));
}
const chosen = await client.chat.completions.create({ ...asked, choices: ["yes", "no"] });
const filled = await client.completions.create({ model, prompt: "it [mask:3] z", seed: 11 });
const painted = await client.images.generate({ model, prompt: "a cat", seed: 7, steps: 4 });
const kinds = [];
for await (const event of await client.images.generate({ model, prompt: "a cat", seed: 7, steps: 4, stream: true, partial_images: 1 })) {
  kinds.push(event.type);
}
const picture = await toFile(Buffer.from(painted.data[0].b64_json, "base64"), "cat.png", { type: "image/png" });
const grown = await client.images.edit({ model, image: picture, prompt: "a cat", side: "left", amount: 0.5, seed: 1, steps: 4 });
const refused = await client.chat.completions.create({ ...asked, model: "gpt-9" }).catch((error) => ({
  status: error.status,
  message: error.message,
}));
console.log(
  JSON.stringify({
    models: (await client.models.list()).data.map((each) => each.id),
    answer: whole.choices[0].message.content,
    usage: whole.usage,
    streamed,
    chosen: chosen.choices[0].message.content,
    filled: filled.choices[0].text,
    codes: painted.data[0].codes,
    kinds,
    size: grown.size,
    refused,
  }),
);
