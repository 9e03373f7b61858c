// The account of the person who is logged in, and the parts that it shares with the screen of
// one user: sessions and API keys.

function showAccount(box) {
  reveal(box, el("div", { class: "cards" }, nameSection(), emailSection(), passwordSection(), factorSection()),
    sessionsSection("me"), keysSection("me"), card("Delete your account",
    el("p", {}, "This deletes your user, its sessions and its API keys. It cannot be undone."),
    button("Delete my account…", deleteMe, "danger")));
}

function deleteMe() {
  const text = "Your user, its sessions and its API keys are deleted. This cannot be undone.";
  ask("Delete your account?", text, "Delete my account", async () => {
    await api("DELETE", "users/me");
    tabs.postMessage({ out: me.id });
    endSession("Your account is deleted.");
  });
}

// keepMe takes over an answer that has the changed user.
function keepMe(user) {
  const { username, email, role } = me;
  me = { ...me, ...user };
  if (me.username === username && me.email === email && me.role === role) return; // the focus can be in the top
  showTop();
  part("top").querySelector('a[href="#/account"]')?.setAttribute("aria-current", "page");
}

function nameSection() {
  const username = field("username", "Username", { value: me.username, autocomplete: "username", maxlength: 80 });
  return card("Username", form([username], "Save", async values => {
    keepMe(await api("PATCH", "users/me", values));
    say("Username saved.");
  }, { label: "Username" }));
}

function emailSection() {
  return section("E-mail address", async again => {
    const user = await api("GET", "users/me", undefined, { signal: screenSignal() });
    keepMe(user);
    const email = field("email", "Address", { type: "email", value: user.email, autocomplete: "email", maxlength: 254 });
    const change = async values => {
      const changed = await api("PATCH", "users/me", values);
      await again();
      say(changed.pending_email ? "To confirm it, open the link in the e-mail to your new address." : "Address saved.");
    };
    return [
      el("p", {}, named(user.email, "no address"), " ", user.email_verified_at ? badge("verified", "ok") : badge("not verified", "warn")),
      user.pending_email && el("p", {}, "Waiting for ", named(user.pending_email), ": open the link in the e-mail to that address. ",
        actButton("Cancel the change", () => change({ email: user.email }), "", "link")),
      !user.email_verified_at && settings.mail === "on" && verifyButton("me"),
      form([email], "Change the address", change, { label: "E-mail address" }),
    ];
  });
}

const verifyButton = id => el("p", {},
  actButton("Send a link that verifies it", () => api("POST", `users/${id}/email/verify`), "The link is on its way."));

function passwordSection() {
  const password = field("password", "New password", { type: "password", autocomplete: "new-password" });
  return card("Password", muted("A new password logs out all your other devices."), form([password], "Change the password", async values => {
    const changed = await api("PATCH", "users/me", values, { lock: true });
    keepToken(changed);
    password.input.value = "";
    say("Password changed. All other devices are logged out.");
    refill("sessions");
  }, { label: "Password", user: me.username }));
}

// refill loads a section of the screen again.
const refills = {};
const refill = key => refills[key]?.();

function sessionsSection(id) {
  const own = id === "me";
  return section("Sessions", async again => {
    refills.sessions = again;
    const items = await api("GET", `users/${id}/sessions`, undefined, { signal: screenSignal() });
    const others = items.filter(s => !s.current);
    const end = s => api("DELETE", `users/${id}/sessions/${s.id}`).catch(err => { if (err.status !== 404) throw err; });
    const endOthers = async () => {
      for (const [i, s] of others.entries()) {
        say(`Ending session ${i + 1} of ${others.length}…`);
        await end(s);
      }
      await again();
    };
    const endAll = async () => {
      await api("DELETE", `users/${id}/sessions`);
      await again();
    };
    const row = s => [
      [browserOf(s.user_agent) && el("div", {}, browserOf(s.user_agent)),
        el("div", { class: "muted small line", title: s.user_agent }, named(s.user_agent, "no browser name"))],
      named(s.address), when(s.created_at), when(s.last_used_at),
      s.current ? badge("this session", "ok") : actButton("End session", async () => { await end(s); await again(); }, "The session has ended."),
    ];
    return [
      list("sessions", "Sessions", ["Browser", "Address", "Began", "Last used", ""], items, row,
        s => `${browserOf(s.user_agent) || s.user_agent}, ${when(s.created_at).textContent}`,
        own ? "No sessions." : "This user is not logged in anywhere."),
      own && others.length > 0 && el("p", {}, actButton("Sign out everywhere else", endOthers, "All other sessions have ended.")),
      !own && items.length > 0 && el("p", {}, actButton("End all sessions", endAll, "All sessions have ended.")),
    ];
  });
}

const day = 24 * 60 * 60;
const keyScopes = ["read", "write", "verify"].map(text => [text, text]);
const aboutScopes = who => `read: see what ${who} may see.
write: see and change what requires no password.
verify: only check the tokens of other users, for a gateway.`;

function keysSection(id) {
  return section("API keys", async again => {
    const items = await api("GET", `users/${id}/keys`, undefined, { signal: screenSignal() });
    const revoke = k => ask(["Revoke the key ", named(k.name), "?"], "Programs that use this key can no longer call the API.", "Revoke", async () => {
      await api("DELETE", `users/${id}/keys/${k.id}`);
      await again();
      say("The key is revoked.");
    });
    const expired = k => k.expires_at && new Date(k.expires_at) < Date.now();
    const row = k => [
      named(k.name), el("code", {}, k.prefix + "…"), k.scope,
      [when(k.expires_at), expired(k) && [" ", badge("expired", "warn")]],
      [when(k.last_used_at), k.last_address && [" from ", named(k.last_address)]],
      button("Revoke…", () => revoke(k)),
    ];
    return [
      list("keys", "API keys", ["Name", "Begins with", "Scope", "Expires", "Last used", ""], items, row, k => k.name,
        "No API keys. Make one for a program that calls the API without a password."),
      el("p", {}, button("New API key…", () => newKey(id, again))),
    ];
  });
}

function newKey(id, again) {
  dialog("New API key", close => {
    const fields = [
      field("name", "Name", { hint: "What the key is for, such as: nightly report", maxlength: 80 }),
      field("scope", "Scope", { choices: keyScopes, hint: aboutScopes(id === "me" ? "you" : "the user") }),
      field("expires_in", "Valid for", { value: "7776000", choices: [7, 30, 90, 180, 365].map(n => [`${n * day}`, plural(n, "day")]) }),
    ];
    const box = form(fields, "Make the key", async values => {
      const made = await api("POST", `users/${id}/keys`, { ...values, expires_in: Number(values.expires_in) });
      replaceForm(box,
        el("p", {}, "Copy the key now. It is not shown again."),
        secret(made.key, "API key"),
        el("div", { class: "buttons" }, button("Done", close, "primary")));
      again();
    }, { cancel: close });
    return box;
  });
}
