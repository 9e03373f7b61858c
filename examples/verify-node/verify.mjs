// A service that verifies the access tokens of userd itself, without a request to userd for
// each token. It follows the event feed, so that it refuses the tokens of a session that has
// ended before they expire. It requires Node.js 20 or newer, and nothing more.
import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

const env = (name) => process.env[name] || fail(`${name} is not set`);
const fail = (text) => {
  console.error(text);
  process.exit(1);
};
const secret = env("JWT_SECRET_KEY");
const issuer = env("JWT_ENCODE_ISSUER");
const audience = env("JWT_ENCODE_AUDIENCE");
const userd = env("USERD_URL");
const key = env("USERD_KEY"); // an API key with the scope admin
const lifetime = 24 * 60 * 60; // the longest of an access token, in seconds

// The only header of userd's tokens if JWT_SECRET_KEY is set. A token cannot choose another
// algorithm.
const header = Buffer.from('{"alg":"HS256","typ":"JWT"}').toString("base64url");

class Refused extends Error {}

const feed = {
  connected: false,
  since: 0, // when the feed began, by the clock of userd
  last: "", // the id of the last event
  sessions: new Map(), // that have ended, with the time
  users: new Map(), // whose sessions have all ended, with the time
};

// verify returns the claims of a valid access token. It throws Refused, or another error if
// userd does not answer.
async function verify(token) {
  const parts = token.split(".");
  const mac = createHmac("sha256", secret).update(parts.slice(0, 2).join(".")).digest();
  const signature = Buffer.from(parts[2] ?? "", "base64url");
  if (parts.length !== 3 || parts[0] !== header || signature.length !== mac.length || !timingSafeEqual(signature, mac)) {
    throw new Refused("the signature is wrong");
  }
  const claims = JSON.parse(Buffer.from(parts[1], "base64url"));
  const now = Date.now() / 1000;
  const valid =
    claims.type === "access" && claims.iss === issuer && [claims.aud].flat().includes(audience) && claims.exp > now && claims.iat <= now + 60;
  if (!valid) {
    throw new Refused("the token is not valid");
  }
  if (feed.sessions.has(claims.sid) || claims.iat <= (feed.users.get(claims.sub) ?? 0)) {
    throw new Refused("the session has ended");
  }
  if (!feed.connected || claims.iat <= feed.since) {
    await introspect(token); // the feed does not say what was before it began
  }
  return claims;
}

// introspect asks userd whether a token is valid.
async function introspect(token) {
  const answer = await fetch(`${userd}/api/introspect`, {
    method: "POST",
    headers: { Authorization: `Bearer ${key}` },
    body: new URLSearchParams({ token }),
    signal: AbortSignal.timeout(5000),
  });
  if (!answer.ok) {
    throw new Error(`userd answers ${answer.status}`);
  }
  if (!(await answer.json()).active) {
    throw new Refused("the token is not valid");
  }
}

// follow follows the event feed, and connects again if it breaks.
async function follow() {
  for (;;) {
    const reason = await read().catch((error) => error);
    feed.connected = false;
    console.error("the event feed ended:", reason);
    await new Promise((done) => setTimeout(done, 1000));
  }
}

// read reads the feed until it breaks. userd sends something at least every 15 seconds.
async function read() {
  const stop = new AbortController();
  let silence = setTimeout(() => stop.abort(), 30_000);
  try {
    const headers = { Authorization: `Bearer ${key}`, Accept: "text/event-stream" };
    if (feed.last) {
      headers["Last-Event-ID"] = feed.last;
    }
    const answer = await fetch(`${userd}/api/events`, { headers, signal: stop.signal });
    if (!answer.ok) {
      return `userd answers ${answer.status}`;
    }
    const began = Date.parse(answer.headers.get("Date")) / 1000;
    let text = "";
    for await (const chunk of answer.body.pipeThrough(new TextDecoderStream())) {
      clearTimeout(silence);
      silence = setTimeout(() => stop.abort(), 30_000);
      const messages = (text + chunk).split("\n\n");
      text = messages.pop(); // not complete yet
      for (const message of messages) {
        const fields = Object.fromEntries(message.split("\n").map((line) => [line.split(": ", 1)[0], line.slice(line.indexOf(": ") + 2)]));
        record(fields.id, JSON.parse(fields.data ?? "null"), began);
      }
    }
    return "userd closed it";
  } finally {
    clearTimeout(silence);
  }
}

// record notes the event with this id, or null if the id says only where the feed is.
function record(id, event, began) {
  if (feed.last === "") {
    feed.since = began;
  }
  feed.connected = true;
  feed.last = id;
  if (event === null) {
    return;
  }
  const at = Date.parse(event.at) / 1000;
  const changes = event.changes ?? [];
  if (["session_ended", "token_reused"].includes(event.type)) {
    feed.sessions.set(String(event.session_id), at);
  } else if (
    ["sessions_ended", "user_deleted", "password_reset", "email_restored", "factor_added"].includes(event.type) ||
    (event.type === "user_changed" && (changes.includes("password") || changes.includes("disabled=true")))
  ) {
    feed.users.set(String(event.user_id), at);
  }
  for (const ended of [feed.sessions, feed.users]) {
    for (const [id, then] of ended) {
      if (then < at - lifetime) {
        ended.delete(id);
      }
    }
  }
}

follow();
const [, host, port] = env("ADDR").match(/^(.*):(\d+)$/) ?? fail("ADDR must be HOST:PORT");
createServer(async (request, response) => {
  const token = (request.headers.authorization ?? "").replace(/^Bearer /, "");
  try {
    response.end(`user ${(await verify(token)).sub}\n`);
  } catch (error) {
    if (error instanceof Refused) {
      response.writeHead(401, { "WWW-Authenticate": "Bearer" });
    } else {
      response.writeHead(503);
    }
    response.end(`${error.message}\n`);
  }
}).listen(Number(port), host);
