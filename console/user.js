// One user, for admins.

async function showUser(box, id) {
  const signal = screenSignal();
  setTitle("User " + id);
  box.append(muted("Loading…"));
  let answer, u;
  try {
    answer = await request("GET", "api/users/" + encodeURIComponent(id), undefined, { signal });
    u = await answer.json();
  } catch (err) {
    if (signal.aborted) return;
    setTitle(err.status === 404 ? "This user does not exist" : "User " + id);
    box.append(el("p", {}, err.status === 404 ? "The user was deleted, or never existed." : explain(err)), el("p", {}, link("All users", "#/users")));
    return part("title").focus();
  }
  const again = () => { if (location.hash === "#/users/" + id) showRoute(); };
  setTitle(named(u.username, "User " + id));
  part("title").focus();
  reveal(box,
    el("p", { class: "badges" }, badge("id " + u.id), badge(u.role, u.role === "admin" && "info"),
      u.service && badge("service user"), u.disabled && badge("disabled", "warn"), u.pending && badge("waiting for approval", "warn"),
      u.id === me.id && badge("this is you", "ok"), link("Events of this user", "#/events?user=" + u.id)),
    el("div", { class: "cards" },
      detailsCard(u, answer.headers.get("ETag"), again), actsCard(u, again)),
    !u.service ? sessionsSection(u.id) : "", keysSection(u.id), dangerCard(u, again));
}

// saved takes over a changed user.
async function saved(u, text, again) {
  if (u.id === me.id) {
    await start(); // the role can be another one
  } else {
    again();
  }
  say(text);
}

function detailsCard(u, version, again) {
  const fields = [field("username", "Username", { value: u.username, maxlength: 80 })];
  if (!u.service) {
    fields.push(field("email", "E-mail address", { type: "email", value: u.email, maxlength: 254 }),
      field("email_verified", "The address is verified",
        { type: "checkbox", checked: !!u.email_verified_at, hint: "Check the address first: applications trust it." }));
  }
  fields.push(roleField(u.role));
  const old = Object.fromEntries(fields.map(x => [x.id, x.value])); // as the browser shows them
  return card("Details", form(fields, "Save", async values => {
    const changed = Object.fromEntries(Object.entries(values).filter(([key, value]) => value !== old[key]));
    if (Object.keys(changed).length === 0) return say("Nothing has changed.");
    if (changed.email_verified) changed.email = values.email;
    try {
      await api("PATCH", "users/" + u.id, changed, { headers: { "If-Match": version } });
    } catch (err) {
      if (err.code === "version_mismatch") err.message = "Another person has changed this user meanwhile. Reload the page, then change it again";
      throw err;
    }
    await saved(u, "User saved.", again);
  }, { label: "Details" }),
  el("dl", {},
    el("dt", {}, "Created"), el("dd", {}, when(u.created_at, "unknown")),
    el("dt", {}, "Changed"), el("dd", {}, when(u.updated_at)),
    el("dt", {}, "Last login"), el("dd", {}, when(u.last_login_at)),
    u.pending_email && [el("dt", {}, "New address, not confirmed"), el("dd", {}, named(u.pending_email))]));
}

function actsCard(u, again) {
  const path = "users/" + u.id;
  const acts = [];
  const add = (title, text, ...buttons) => acts.push(el("div", { class: "act" }, el("h3", {}, title), muted(text), ...buttons));
  if (u.pending) {
    add("Approval", "This user has registered, and waits for an admin.",
      actButton("Approve", async () => { await api("POST", path + "/approve"); await saved(u, "User approved.", again); }, "", "primary"));
  }
  if (!u.service) {
    add("Password", "Make a link with which the user sets a new password. You do not learn the password.",
      button("Make a reset link…", () => resetLink(u)));
    if (settings.mail === "on" && !u.email_verified_at) add("Address", "The address is not verified.", verifyButton(u.id));
    add("Second factor", "If the user has one, and has lost the app and the recovery codes, turn it off. Check first who asks, and not by mail.",
      button("Turn off the second factor…", () => ask("Turn off the second factor?", "The password is then enough to log in as this user.", "Turn off", async () => {
        await api("DELETE", path + "/totp");
        await saved(u, "The second factor is off.", again);
      })));
  }
  return card("Help this user", ...acts);
}

function resetLink(u) {
  dialog("Reset link", close => {
    const life = field("expires_in", "Valid for", { value: "86400", choices: [["3600", "1 hour"], ["86400", "24 hours"], ["604800", "7 days"]] });
    const box = form([life], "Make the link", async values => {
      const made = await api("POST", `users/${u.id}/reset-link`, { expires_in: Number(values.expires_in) });
      replaceForm(box,
        el("p", {}, "Send this link to ", named(u.username), " in a way that you trust. It works once, until ",
          when(made.expires_at), ". It is not shown again."),
        secret(made.url, "Reset link"),
        el("div", { class: "buttons" }, button("Done", close, "primary")));
    }, { cancel: close });
    return box;
  });
}

function dangerCard(u, again) {
  const path = "users/" + u.id;
  const setDisabled = async disabled => {
    await api("PATCH", path, { disabled });
    await saved(u, disabled ? "User disabled." : "User enabled.", again);
  };
  const disable = () => ask("Disable this user?", "Its sessions and API keys end, and it cannot log in. Its data stays.", "Disable", () => setDisabled(true));
  const remove = () => ask("Delete this user?", "The user, its sessions and its API keys are deleted. This cannot be undone.", "Delete", async () => {
    await api("DELETE", path);
    if (u.id === me.id) return endSession("Your user is deleted.");
    say("User deleted.");
    location.hash = "#/users";
  });
  return card("Disable or delete", el("div", { class: "buttons" },
    u.disabled ? actButton("Enable", () => setDisabled(false)) : button("Disable…", disable),
    button("Delete…", remove, "danger")));
}
