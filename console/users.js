// The list of users, for admins: search, filters, pages, and new users.

const pageSize = 50;
const userStates = { "": "Any state", active: "Active", disabled: "Disabled", pending: "Waiting for approval" };
const userRoles = { "": "Any role", admin: "Admins", member: "Members" };
const stateParameters = { "": "", active: "&disabled=false&pending=false", disabled: "&disabled=true", pending: "&pending=true" };

function showUsers(box, query) {
  const search = field("q", "Search", { type: "search", value: query.get("q") ?? "", placeholder: "Start of a name or address" });
  const role = field("role", "Role", { choices: Object.entries(userRoles), value: query.get("role") ?? "" });
  const state = field("state", "State", { choices: Object.entries(userStates), value: query.get("state") ?? "" });
  const found = el("p", { class: "muted", role: "status" }, "Loading…");
  const rows = el("div", { class: "rows" });
  const t = table("users", "Users", ["Username", "E-mail address", "Role", "State", "Created", "Last login"]);
  let after = Number(query.get("after")) || 0, stop = new AbortController();

  // address returns the address of this list, beginning after an id.
  const address = from => route("users",
    search.value ? { q: search.value } : { role: role.value, state: state.value, after: from });
  const load = async () => {
    stop.abort();
    stop = new AbortController();
    const signal = AbortSignal.any([stop.signal, screenSignal()]);
    const q = search.value.trim();
    role.input.disabled = state.input.disabled = q !== "";
    const path = q ? `users?limit=${pageSize}&q=${encodeURIComponent(q)}`
      : `users?limit=${pageSize}&after=${after}${role.value && "&role=" + role.value}${stateParameters[state.value] ?? ""}`;
    try {
      const { items, next } = await page(path, signal);
      showRows(q, items, next);
    } catch (err) {
      if (signal.aborted) return;
      found.textContent = explain(err);
    }
  };
  const showRows = (q, items, next) => {
    t.body.replaceChildren(...items.map(u => t.row(userCells(u))));
    if (items.length) rows.replaceChildren(t.box);
    else if (q) rows.replaceChildren(muted("No username and no address begins with this text. Type less of it."));
    else rows.replaceChildren(muted("No user has this role and this state. Choose others, or add a user."));
    if (!q) found.textContent = `${plural(items.length, "user")} on this page.`;
    else if (items.length < pageSize) found.textContent = `${plural(items.length, "user")} found.`;
    else found.textContent = `The first ${pageSize} users. Type more of the name to see fewer.`;
    rows.append(el("p", { class: "buttons" },
      !q && after > 0 && link("First page", address(""), "button"), " ",
      !q && next && link("Next page", address(next), "button")));
  };
  const invite = () => newInvitation(() => { location.hash = "#/invitations"; });
  const change = () => {
    after = 0;
    history.replaceState(null, "", address(""));
    load();
  };
  search.input.addEventListener("input", change);
  role.input.addEventListener("change", change);
  state.input.addEventListener("change", change);
  box.append(
    el("div", { class: "filters", role: "search" }, search.box, role.box, state.box,
      el("div", { class: "buttons" }, button("Add a user", addUser, "primary"), button("Invite", invite))),
    found, rows);
  load();
}

function userCells(u) {
  return [
    el("a", { href: "#/users/" + u.id }, named(u.username)),
    u.service ? el("span", { class: "muted" }, "service user")
      : [named(u.email, "no address"), u.email_verified_at && [" ", badge("verified", "ok")]],
    u.role === "admin" ? badge("admin", "info") : u.role,
    u.disabled ? badge("disabled", "warn") : u.pending ? badge("waiting", "warn") : "active",
    when(u.created_at, "unknown"), when(u.last_login_at),
  ];
}

const roleField = value =>
  field("role", "Role", { value, choices: [["member", "member"], ["admin", "admin"]], hint: "An admin may change every user." });

function addUser() {
  dialog("Add a user", close => {
    const fields = [
      field("username", "Username", { maxlength: 80 }),
      field("email", "E-mail address", { type: "email", maxlength: 254 }),
      field("password", "Password", { type: "password", autocomplete: "new-password", hint: "To let users choose their own, invite them instead." }),
      roleField("member"),
    ];
    return form(fields, "Add", async values => {
      const u = await api("POST", "users", values);
      close();
      say("User added.");
      location.hash = "#/users/" + u.id;
    }, { cancel: close });
  });
}
