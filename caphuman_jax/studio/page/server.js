// What the page asks the server.

export class ServerError extends Error {
  constructor(status, body) {
    super(body?.error?.reason || `the server answered ${status}`);
    this.status = status;
    this.fields = body?.error?.fields || [];
  }
}

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, { error: { reason: "the server does not answer; is it still running?" } });
  }
  if (answer.ok) return answer;
  throw new ServerError(answer.status, await answer.json().catch(() => null));
}

const json = (value, method = "POST") => ({
  method,
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(value),
});

// "loading", "warming up", "ready", or "gone" where the server does not answer.
export const stage = () => fetch("/health").then((answer) => answer.json()).then((facts) => facts.model).catch(() => "gone");

// Resolves once the model answers.
export async function loaded() {
  while (["loading", "gone"].includes(await stage())) await pause(0.5);
}

export const models = async () => (await ask("/v1/models")).json();
export const headModel = async () => (await ask("/v1/head-model")).json();

// What the session keeps; a new session where there is none.
export const session = async () => (await ask("/v1/session", { method: "POST" })).json();

export const endSession = () => ask("/v1/session", { method: "DELETE" });

export async function addPhoto(file) {
  const form = new FormData();
  form.append("photo", file, file.name || "photo.png");
  return (await (await ask("/v1/photos", { method: "POST", body: form })).json()).photos[0];
}

export async function head(photo, face) {
  await loaded();
  return (await ask("/v1/heads", json(face == null ? { photo } : { photo, face }))).json();
}

// Make the pictures of a job. `on` has a function for each event of docs/serve.md.
export async function make(job, on, signal) {
  const path = job.edit ? "/v1/edits" : "/v1/images";
  const options = json(job);
  options.headers.Accept = "text/event-stream";
  const answer = await ask(path, { ...options, signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const kind = block.match(/^event: (.*)$/m)?.[1];
      const facts = JSON.parse(block.match(/^data: (.*)$/m)?.[1] || "{}");
      if (kind === "failed") throw new ServerError(facts.status, facts);
      on[kind]?.(facts);
    }
  }
}
