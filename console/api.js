// Requests to userd, the session of this tab, and what happens if the server cannot be reached.

let token = "", tokenEnds = 0; // the access token lives only here; the refresh token is a cookie
let me = null; // the user of the session, as the API shows it

const settings = document.documentElement.dataset;
const tabs = new BroadcastChannel("userd " + new URL(".", location.href).pathname);

// An ApiError is an answer that reports an error; its status is 0 if there is no answer.
class ApiError extends Error {
  constructor(status, body, retryAfter) {
    super(body.error ?? "The server answered with an error.");
    Object.assign(this, { status, code: body.code ?? "", fields: body.fields, body, retryAfter });
  }
}

// A Cancelled error means that the person closed the dialog of a proof.
class Cancelled extends Error {}

const unreachable = "The server is busy or cannot be reached. Try again in a moment.";

// waitText says how long to wait after too many attempts.
function waitText(seconds) {
  const [count, unit] = seconds > 90 ? [Math.ceil(seconds / 60), "minute"] : [seconds, "second"];
  return `Too many attempts. Wait ${plural(count, unit)}, then try again.`;
}

const advice = {
  username_taken: " Choose another one.",
  email_taken: " Use another one.",
  last_admin: ". Make another user an admin first.",
  too_many_keys: "",
};

// isTrouble reports whether an error comes from the server or the way to it: there is no answer, an
// internal error, or an answer that is not from userd.
const isTrouble = err => !(err instanceof ApiError) || err.status === 0 || err.status >= 500;

// passes reports whether the same request can succeed later.
const passes = err => isTrouble(err) || err.status === 429;

// explain returns what a person should know about an error.
function explain(err) {
  if (err.status === 429) return waitText(err.retryAfter || 60);
  if (isTrouble(err)) return unreachable;
  const end = /[.!?:]$/.test(err.message) ? "" : ".";
  return err.message + (advice[err.code] ? advice[err.code].replace(/^ /, end + " ") : end);
}

const pause = (ms, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, ms);
  signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
});

// send sends one request, without the access token if it is anonymous. It returns the answer, or
// throws an ApiError.
async function send(method, path, body, { signal, headers, anonymous } = {}) {
  let answer;
  try {
    answer = await fetch(path, {
      method, signal,
      headers: {
        ...(token && !anonymous && { Authorization: "Bearer " + token }),
        ...(body !== undefined && { "Content-Type": "application/json" }),
        ...headers,
      },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (err) {
    if (signal?.aborted) throw err;
    setLost(true);
    throw new ApiError(0, {});
  }
  if (answer.status < 500) setLost(false);
  if (answer.ok) return answer;
  const result = await answer.json().catch(() => ({}));
  throw new ApiError(answer.status, result, Number(answer.headers.get("Retry-After")));
}

// away are the statuses while userd cannot be reached: 0 for no answer, and those of a proxy.
const away = [0, 502, 503, 504];

const stale = ["expired_token", "invalid_token", "session_ended", "missing_token"];

// request sends a request with the access token, and returns the answer. It refreshes the token
// if that is necessary, and asks for a proof if the server requires one. Until the server can be
// reached, it sends a GET again and again.
async function request(method, path, body, options = {}) {
  if (!options.quiet) setBusy(1);
  try {
    return await requestAgain(method, path, body, options);
  } finally {
    if (!options.quiet) setBusy(-1);
  }
}

let underWay = 0;
function setBusy(change) {
  underWay += change;
  part("main").setAttribute("aria-busy", underWay > 0);
}

async function requestAgain(method, path, body, options) {
  for (let tries = 0, refreshed = false; ;) {
    if (performance.now() > tokenEnds) await refresh(token);
    const used = token;
    try {
      const act = () => send(method, path, body, options);
      return await (options.lock ? locked(act) : act());
    } catch (err) {
      if (!(err instanceof ApiError)) throw err;
      if (err.code === "fresh_login_required") {
        setBusy(-1); // the page waits for the person
        await prove().finally(() => setBusy(1));
      } else if (err.status === 401 && stale.includes(err.code) && !refreshed) {
        refreshed = true;
        await refresh(used);
      } else if (method === "GET" && away.includes(err.status)) {
        setLost(true);
        await pause(Math.min(500 * 2 ** tries++, 5000), options.signal);
      } else {
        if (err.code === "factor_required" && path !== "api/users/me") start();
        throw err;
      }
    }
  }
}

// api sends a request, and returns the value of the answer.
async function api(method, path, body, options) {
  const answer = await request(method, "api/" + path, body, options);
  return answer.status === 204 || answer.status === 202 && !answer.headers.get("Content-Type") ? null : answer.json();
}

// page returns a page of a list, and the id after which the next page begins.
async function page(path, signal) {
  const answer = await request("GET", "api/" + path, undefined, { signal });
  const next = /[?&]after=(\d+)/.exec(answer.headers.get("Link") ?? "")?.[1];
  return { items: await answer.json(), next };
}

const keepToken = result => {
  token = result.access_token;
  tokenEnds = performance.now() + result.expires_in * 900; // a tenth earlier
};

// locked runs f while no other tab uses the cookie: several refreshes of one token would look
// like a theft.
const locked = f => navigator.locks ? navigator.locks.request("userd session", f) : f();

// refresh exchanges the cookie for a new access token, unless another call has replaced the
// old one meanwhile. If the session has ended, it shows the login and throws an ApiError.
async function refresh(old) {
  const tryOnce = async () => {
    if (token !== old) return;
    try {
      keepToken(await (await send("POST", "api/refresh", undefined, { anonymous: true })).json());
      checkUser();
    } catch (err) {
      if (isTrouble(err)) return err;
      if (me && err.status !== 429) endSession("Your session has ended. Log in again.");
      throw err;
    }
  };
  for (let tries = 0, failed; (failed = await locked(tryOnce)); tries++) {
    setLost(true);
    await pause(Math.max(Math.min(500 * 2 ** tries, 5000), 1000 * (failed.retryAfter || 0))); // without the lock
  }
}

// checkUser loads the page again if the access token is that of another user: one has logged in
// in another tab, or has the name that the user of this tab had.
function checkUser() {
  if (me && claims().sub !== `${me.id}`) location.reload();
}

// claims returns what the access token says: sid is the id of the session, sub that of the user.
const claims = () => JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));

// logIn starts a session with a request to api/login or api/login/factor, and returns the answer.
function logIn(path, body) {
  return locked(async () => {
    const result = await (await send("POST", path, { ...body, cookie: true }, { anonymous: true })).json();
    keepToken(result);
    return result;
  });
}

const needsCode = err => ["second_factor_required", "wrong_otp", "otp_used", "recovery_code_required"].includes(err.code);

const otpField = (id, hint) => field("otp", "Code of your authenticator app, or a recovery code", { id, hint, autocomplete: "one-time-code" });

// askCode shows the field for a code if an error says that one is necessary. It throws the error,
// unless the person sees the field for the first time.
function askCode(err, otp) {
  const first = otp.box.hidden;
  if (needsCode(err)) otp.box.hidden = false;
  if (err.code === "second_factor_required") {
    if (first) return otp.input.focus();
    err.fields = { otp: "Enter a code." };
  }
  throw err;
}

let proving = null;
let loginName = ""; // what the person typed at the last login

// prove asks for the password in a dialog, and for a code if the user has a second factor. It
// logs in again: for 15 minutes, no other act then asks. It throws Cancelled if the person
// closes the dialog.
async function prove() {
  try { // the password must not be tried at another user, who may have the name now
    me = await api("GET", "users/me", undefined, { quiet: true });
  } catch (err) {
    if (err.code !== "factor_required") throw err;
  }
  const username = me.username || me.email || loginName;
  if (!username) {
    endSession("Log in again to go on.");
    throw new Cancelled();
  }
  proving ??= new Promise((resolve, reject) => {
    const password = field("password", "Your password", { type: "password", id: "proof-password", autocomplete: "current-password" });
    const otp = otpField("proof-otp");
    otp.box.hidden = true;
    let box;
    const act = async values => {
      const ended = claims().sid;
      try {
        await logIn("api/login", { username, password: values.password, ...(!otp.box.hidden && { otp: values.otp }) });
      } catch (err) {
        if (err.code === "invalid_credentials") err.fields = { password: "This password is wrong." };
        return askCode(err, otp);
      }
      checkUser();
      resolve();
      box.close();
      send("DELETE", "api/users/me/sessions/" + ended).catch(() => {}); // the new session replaces it
    };
    box = dialog("Confirm that it is you", close => [
      muted("This change requires your password. For the next 15 minutes, nothing else asks for it."),
      form([password, otp], "Confirm", act, { cancel: close, user: username }),
    ], { id: "proof", close: () => reject(new Cancelled("cancelled")) });
  }).finally(() => { proving = null; });
  return proving;
}

// endSession forgets the session of this tab, and shows the login.
function endSession(text) {
  token = loginName = "";
  me = null;
  part("top").replaceChildren();
  for (const box of document.querySelectorAll("dialog")) box.close();
  showLogin(text);
}

async function logOut() {
  await api("POST", "logout", undefined, { lock: true });
  tabs.postMessage({ out: me.id });
  endSession("You have logged out.");
}

tabs.addEventListener("message", event => {
  const { out, user } = event.data;
  if (out && me?.id === out) endSession("You have logged out in another tab.");
  if (user && me?.id !== user && isConsole) location.reload(); // the cookie is that of another user now
});

// setLost shows whether the server can be reached. While it cannot, a probe asks every two
// seconds, so that the note goes as soon as the server is back.
let lost = false;
function setLost(now) {
  if (now === lost) return;
  lost = now;
  part("lost").textContent = lost ? "The server cannot be reached. Trying again…" : "";
  if (lost) setTimeout(probe, 2000);
}

async function probe() {
  if (!lost) return;
  if (!away.includes(await statusOf("readyz"))) return setLost(false);
  setTimeout(probe, 2000);
}

// A quiet screen notices a lost server too.
setInterval(async () => {
  if (me && !lost && !document.hidden && away.includes(await statusOf("healthz"))) setLost(true);
}, 10000);

const statusOf = path => fetch(path).then(answer => answer.status, () => 0);
