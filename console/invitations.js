// Invitations, for admins.

function showInvitations(box) {
  let again;
  reveal(box, el("p", {}, button("Invite", () => newInvitation(() => again()), "primary")),
    section("Open invitations", async fill => {
      again = fill;
      const { items, next } = await page("invitations?limit=1000", screenSignal());
      return [
        list("invitations", "Invitations", ["For", "Role", "Uses left", "Made", "Expires", ""],
          items.filter(v => v.uses_left > 0), v => invitationCells(v, fill),
          v => `${v.email || v.username || "anyone"}, ${when(v.created_at).textContent}`,
          "No invitation is open. Invite a person, who then creates an account with the link."),
        next && muted("These are the first 1,000."),
      ];
    }));
}

function invitationCells(v, again) {
  return [
    v.email || v.username ? [v.email && named(v.email), v.email && v.username && ", ", v.username && named(v.username)] : "anyone with the link",
    v.role, `${v.uses_left}`,
    [when(v.created_at), v.created_by && [" by ", userLink(v.created_by)]],
    when(v.expires_at),
    el("div", { class: "buttons" },
      v.email && settings.mail === "on" && actButton("Send again", () => api("POST", `invitations/${v.id}/send`), "The invitation is on its way."),
      button("Delete…", () => ask("Delete this invitation?", "Its links stop working.", "Delete", async () => {
        await api("DELETE", "invitations/" + v.id);
        await again();
        say("Invitation deleted.");
      }))),
  ];
}

// newInvitation asks for an invitation, and shows its link. done is called after that.
function newInvitation(done) {
  const mailed = settings.mail === "on";
  let made = null;
  dialog("Invite", close => {
    const fields = [
      field("email", "E-mail address (optional)", { type: "email", maxlength: 254, hint: `If you enter one, ${mailed ? "the link is mailed to it, and " : ""}only this address can register.` }),
      field("username", "Username (optional)", { maxlength: 80, hint: "If you enter one, the person cannot choose another." }),
      field("uses", "How many people can use the link", { type: "number", min: 1, max: 100, value: "1" }),
      field("expires_in", "Valid for", { value: `${3 * day}`, choices: [["3600", "1 hour"], ...[1, 3, 7, 30].map(n => [`${n * day}`, plural(n, "day")])] }),
    ];
    const box = form(fields, "Make the invitation", async values => {
      const body = { uses: Number(values.uses), expires_in: Number(values.expires_in) };
      for (const key of ["email", "username"]) if (values[key]) body[key] = values[key];
      made = await api("POST", "invitations", body);
      replaceForm(box,
        el("p", {}, body.email && mailed ? "An e-mail with a link is on its way. You can also send this one:" : "Send this link to the person:"),
        secret(made.url, "Invitation"), el("p", {}, "It works until ", when(made.expires_at), ", and is not shown again."),
        el("div", { class: "buttons" }, button("Done", close, "primary")));
      say("Invitation made.");
    }, { cancel: close });
    return box;
  }, { close: () => { if (made) done(); } });
}
