// The live events, for admins. The feed is read with fetch, because EventSource cannot send a
// token.

const maxEvents = 500; // rows on the screen
const searchedEvents = 1000; // ids that are searched for the events before the first live one

const eventTypes = ["user_created", "user_changed", "user_deleted", "users_imported", "login", "session_ended", "sessions_ended",
  "token_reused", "key_rotated", "events_trimmed", "password_reset", "reset_link_created", "invitation_created",
  "invitation_deleted", "invitation_used", "user_approved", "email_verified", "email_changed", "email_restored",
  "key_created", "key_revoked", "factor_added", "factor_removed", "factor_locked", "recovery_codes_renewed", "recovery_code_used"];

function showEvents(box, query) {
  const leave = screenSignal();
  const type = field("type", "Type", { choices: [["", "All types"], ...eventTypes.map(t => [t, t.replaceAll("_", " ")])], value: query.get("type") ?? "" });
  const user = field("user", "User", { value: query.get("user") ?? "", placeholder: "Name or id" });
  const t = table("events", "Events, the newest first", ["Time", "Event", "User", "By", "Address", "Changes"]);
  const state = el("p", { class: "muted", role: "status" }, "Connecting…");
  const empty = muted("No events yet. Each act that changes something appears here when it happens.");
  const held = button("", () => { paused = false; scrollTo(0, 0); draw(); }, "primary held");
  const hold = button("Pause", () => { paused = !paused; draw(); });
  let waiting = [], paused = false, drawing = false, live = false, unknown = false, dropped = 0, stop = new AbortController();

  // draw shows the events that wait, at most once per frame. While the reader has paused or
  // scrolled down, it only counts them, so that the rows do not move.
  const draw = () => {
    drawing = false;
    if (!paused && scrollY <= 300 && waiting.length) {
      for (const e of waiting) if (e.changes?.includes("username")) userNames.delete(e.user_id);
      t.body.prepend(...waiting.reverse().map(e => t.row(eventCells(e))));
      while (t.body.rows.length > maxEvents) t.body.lastChild.remove();
      waiting = [];
      dropped = 0;
      nameUsers(t.body, leave);
    }
    empty.hidden = !live || t.body.rows.length > 0 || waiting.length > 0;
    t.box.hidden = !t.body.rows.length;
    held.hidden = waiting.length === 0;
    held.textContent = `Show ${plural(waiting.length + dropped, "new event")}`;
    hold.textContent = paused ? "Go on" : "Pause";
    const text = unknown ? "No user has this name or address." : !live ? "Connecting…" : paused ? "Paused." : "Live: new events appear at the top.";
    if (state.textContent !== text) state.textContent = text;
  };
  const add = events => {
    waiting.push(...events);
    if (waiting.length > maxEvents) dropped += waiting.splice(0, waiting.length - maxEvents).length;
    if (!drawing) requestAnimationFrame(draw);
    drawing = true;
  };
  const begin = async () => {
    stop.abort();
    stop = new AbortController();
    const signal = AbortSignal.any([stop.signal, leave]);
    waiting = [];
    live = unknown = false;
    t.body.replaceChildren();
    draw();
    try {
      const id = await userID(user.value.trim(), signal);
      unknown = id === undefined;
      if (unknown) return draw();
      const address = route("events", { type: type.value, user: id });
      history.replaceState(null, "", address);
      await follow(address.split("?")[1] ?? "", add, now => { live = now; draw(); }, signal);
    } catch (err) {
      if (!signal.aborted) state.textContent = explain(err);
    }
  };
  type.input.addEventListener("change", begin);
  user.input.addEventListener("change", begin);
  addEventListener("scroll", () => { if (waiting.length && scrollY <= 300 && !paused) draw(); }, { signal: leave, passive: true });
  box.append(el("div", { class: "filters" }, type.box, user.box, el("div", { class: "buttons" }, hold)), state, held, empty, t.box);
  begin();
}

// userID returns the id of the user with this id, name or address, as text: "" for no text, and
// undefined for no user.
async function userID(text, signal) {
  if (!text || /^[0-9]+$/.test(text)) return text;
  const { items } = await page(`users?limit=10&q=${encodeURIComponent(text)}`, signal);
  const same = other => other?.toLowerCase() === text.toLowerCase();
  return items.find(u => same(u.username) || same(u.email))?.id;
}

// follow reads the latest events and then the stream, again and again until the signal.
async function follow(filter, add, setLive, signal) {
  let last = -1;
  for (let tries = 0; ; tries++) {
    let least = 0;
    try {
      const answer = await request("GET", `api/events?${filter}`, undefined, {
        signal, quiet: true, headers: { Accept: "text/event-stream", ...(last >= 0 && { "Last-Event-ID": `${last}` }) },
      });
      await readStream(answer.body, async (id, events) => {
        if (last < 0) {
          const { items } = await page(`events?limit=${searchedEvents}&after=${Math.max(0, id - searchedEvents)}&${filter}`, signal);
          add(items.filter(e => e.id <= id).slice(-maxEvents));
        }
        tries = 0;
        last = id;
        setLive(true);
        add(events);
      });
    } catch (err) {
      if (signal.aborted || !passes(err) && err.status !== 400) throw err;
      if (err.status === 400) last = -1; // the ids began anew
      least = 1000 * (err.retryAfter || 0);
    }
    setLive(false);
    await pause(Math.max(least, Math.min(250 * 2 ** tries, 5000)), signal);
  }
}

// readStream reads server-sent events. It calls got with the last id and the events of each part.
async function readStream(body, got) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const end = text.lastIndexOf("\n\n");
    if (end < 0) continue;
    let id = -1;
    const events = [];
    for (const line of text.slice(0, end).split("\n")) {
      if (line.startsWith("id: ")) id = Number(line.slice(4));
      if (line.startsWith("data: ")) events.push(JSON.parse(line.slice(6)));
    }
    text = text.slice(end + 2);
    if (id >= 0) await got(id, events);
  }
}

// eventCells shows "invitation=1" as "invitation 1", and "role=admin" as "role: admin".
function eventCells(e) {
  const changes = e.changes?.map(text => text.replaceAll("_", " ").replace(/=(?=\d)/, " ").replace("=", ": ")).join(", ");
  const by = e.actor_id ? e.actor_id === e.user_id ? "the user" : userLink(e.actor_id)
    : e.type === "user_created" && e.changes?.some(text => text.startsWith("invitation=")) && "an invitation";
  return [
    when(e.at, "", clockTime), e.type.replaceAll("_", " "), e.user_id && userLink(e.user_id), by,
    e.address === "console" ? "command line" : e.address && named(e.address),
    changes && el("bdi", { class: "small" }, changes),
  ];
}

const userNames = new Map(); // by id; "" if the name is not known

const userLink = id => el("a", { href: "#/users/" + id, "data-user": id }, named(userNames.get(id), "user " + id));

// nameUsers replaces the ids of the newest users in an element by their names, a few at a time.
async function nameUsers(box, signal) {
  const newest = [...box.querySelectorAll("[data-user]")].slice(0, 60).map(a => Number(a.dataset.user));
  for (const id of new Set(newest)) {
    if (userNames.has(id)) continue;
    userNames.set(id, "");
    try {
      userNames.set(id, (await api("GET", "users/" + id, undefined, { signal, quiet: true })).username);
    } catch (err) {
      if (err.status !== 404) userNames.delete(id);
      if (signal.aborted) return;
      continue;
    }
    for (const a of box.querySelectorAll(`[data-user="${id}"]`)) a.replaceChildren(named(userNames.get(id), "user " + id));
  }
}
