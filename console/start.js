// The start of the page, and which screen an address shows.

const isConsole = !["reset", "invite", "verify", "change", "undo"].includes(location.pathname.split("/").at(-1));

// The screens by the first part of the address after "#/". Only admins see those with admin.
const screens = {
  users: { label: "Users", admin: true, show: (box, path, query) => path ? showUser(box, path) : showUsers(box, query) },
  invitations: { label: "Invitations", admin: true, show: box => showInvitations(box) },
  events: { label: "Events", admin: true, show: (box, path, query) => showEvents(box, query) },
  mail: { label: "Mail", admin: true, show: (box, path, query) => showMail(box, query) },
  state: { label: "State", admin: true, show: box => showState(box) },
  account: { label: "Account", show: box => showAccount(box) },
};

let leaving = new AbortController();
const screenSignal = () => leaving.signal; // aborted when the screen is left

// leaveScreen ends the requests and the timers of the screen, and makes room for the next one.
function leaveScreen() {
  part("loading").hidden = true;
  part("main").hidden = false;
  leaving.abort();
  leaving = new AbortController();
  loads = [];
  userNames.clear();
  for (const box of document.querySelectorAll("dialog")) box.close();
}

// showRoute shows the screen of the address.
function showRoute() {
  if (!me) return;
  const [path, query] = location.hash.slice(2).split("?");
  const [key, rest] = path.split("/");
  const screen = Object.hasOwn(screens, key) && screens[key];
  if (!screen || screen.admin && me.role !== "admin") {
    location.replace(me.role === "admin" ? "#/users" : "#/account");
    return;
  }
  leaveScreen();
  for (const a of document.querySelectorAll("#top nav a")) {
    if (a.hash === "#/" + key) a.setAttribute("aria-current", "page");
    else a.removeAttribute("aria-current");
  }
  const box = part("main");
  box.className = "";
  setTitle(screen.label);
  scrollTo(0, 0);
  screen.show(box, rest, new URLSearchParams(query));
  part("title").focus({ preventScroll: true });
}

// setTitle begins a screen with its title.
function setTitle(...title) {
  const h1 = el("h1", { id: "title", tabindex: -1 }, ...title);
  part("main").replaceChildren(h1);
  document.title = h1.textContent + " · userd";
}

function showTop() {
  part("top").replaceChildren(
    el("strong", {}, "userd"),
    me.role === "admin" && el("nav", { "aria-label": "Main" },
      Object.entries(screens).map(([key, { label }]) => link(label, "#/" + key))) || "",
    el("span", { class: "who" }, named(me.username || me.email), actButton("Log out", logOut)));
  part("top").hidden = false;
}

// start shows the screen of the session, or the login if there is none.
async function start() {
  const signal = screenSignal();
  try {
    if (!token && settings.session === "none") throw new ApiError(401, {}); // a request would only fail
    me = await api("GET", "users/me", undefined, { signal });
    showTop();
    showRoute();
  } catch (err) {
    if (signal.aborted) return;
    if (err.code === "factor_required") return showEnrolment();
    me = null;
    if (settings.firstAdmin) showFirstAdmin();
    else if (err.status === 401) showLogin();
    else showLogin(explain(err));
  }
}

part("skip").addEventListener("click", () => part("title").focus());
if (isConsole) {
  part("main").hidden = true; // so that it does not move when the navigation appears
  part("loading").hidden = false;
  addEventListener("hashchange", showRoute);
  start();
} else {
  startCodes();
}
