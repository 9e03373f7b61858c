// The queue of mails, for admins.

const mailStates = { queued: "Waiting", failed: "Failed", sent: "Sent", dropped: "Dropped" };
const noMail = {
  queued: "No mail waits to be sent.", failed: "No mail has failed in the last 7 days.",
  sent: "No mail was sent in the last 7 days.", dropped: "No mail was dropped in the last 7 days.",
};

function showMail(box, query) {
  if (settings.mail !== "on") {
    box.append(muted("This service sends no mail: links are made by admins and by the command line. To send mail, set MAIL_URL and MAIL_FROM."));
    return;
  }
  const state = Object.hasOwn(mailStates, query.get("state")) ? query.get("state") : "queued";
  const after = Number(query.get("after")) || 0;
  reveal(box, el("nav", { class: "tabs", "aria-label": "State of the mails" },
    Object.entries(mailStates).map(([key, label]) => el("a", { href: "#/mail?state=" + key, "aria-current": key === state && "true" }, label))),
  section(mailStates[state], async again => {
    const { items, next } = await page(`mail?limit=${pageSize}&state=${state}&after=${after}`, screenSignal());
    return [
      list("mail", "Mails", ["Mail", "To", "Made", "Tries", state === "queued" ? "Next try" : "Ended", "Last error", ""],
        items, m => mailCells(m, again), mailName, noMail[state]),
      el("div", { class: "buttons" }, after > 0 && link("First page", "#/mail?state=" + state, "button"),
        next && link("Next page", `#/mail?state=${state}&after=${next}`, "button"), button("Reload", again)),
    ];
  }));
}

const mailName = m => `${m.kind} (${m.id})`;

function mailCells(m, again) {
  const retry = async () => {
    await api("POST", `mail/${m.id}/retry`);
    await again();
  };
  return [
    mailName(m),
    [m.email && named(m.email), m.user_id && [" ", userLink(m.user_id)]],
    when(m.created_at), `${m.tries}`, when(m.next_try_at ?? m.closed_at, "not known"),
    m.last_error ? el("bdi", { class: "small" }, m.last_error) : "",
    ["queued", "failed"].includes(m.state) && actButton("Try now", retry, "userd tries again now."),
  ];
}
