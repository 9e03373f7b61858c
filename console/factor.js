// The second factor of the person who is logged in: its QR code and its recovery codes.

function factorSection() {
  return section("Second factor", async again => {
    const signal = screenSignal();
    const [state, user] = await Promise.all([api("GET", "users/me/totp", undefined, { signal }), api("GET", "users/me", undefined, { signal })]);
    if (!state.on) {
      return [
        el("p", {}, badge("off", "warn"), " With a second factor, a stolen password is not enough to log in."),
        settings.mail === "on" && !user.email_verified_at
          ? muted("To add one, verify your e-mail address first.")
          : actButton("Add a second factor", () => addFactor(again), "", "primary"),
      ];
    }
    return [
      el("p", {}, badge("on", "ok"), " since ", when(state.since)),
      el("p", {}, plural(state.recovery_codes_left, "recovery code"), " left.", state.recovery_codes_left < 3 && " Make new ones soon."),
      state.locked && el("p", { class: "wrong" }, "Too many wrong codes: until your next login, only a recovery code works."),
      el("div", { class: "buttons" },
        actButton("New recovery codes", async () => {
          const { recovery_codes: codes } = await api("POST", "users/me/recovery-codes");
          dialog("Your new recovery codes", close => recoveryCodes(codes, close), { close: again });
        }),
        actButton("Replace the app", () => addFactor(again)),
        button("Turn off…", () => ask("Turn off the second factor?", "Your password is then enough to log in.", "Turn off", async () => {
          await api("DELETE", "users/me/totp");
          await again();
          say("The second factor is off.");
        }), "danger")),
    ];
  });
}

// addFactor gets a new secret, and shows it in a dialog that asks for its first code.
async function addFactor(again) {
  const made = await api("POST", "users/me/totp");
  dialog("Add a second factor", close => {
    const otp = field("otp", "Code that the app shows", { inputmode: "numeric", autocomplete: "one-time-code", maxlength: 12 });
    const steps = el("div", {},
      el("p", {}, "Scan this with an authenticator app, such as Aegis or Google Authenticator:"),
      made.qr && drawQR(made.qr),
      el("details", {}, el("summary", {}, "I cannot scan it"), el("p", {}, "Enter this secret into the app:"), secret(made.secret, "Secret"),
        el("p", {}, link("Open in an app on this device", made.uri))),
      form([otp], "Turn on", async values => {
        const { recovery_codes: codes } = await api("POST", "users/me/totp/confirm", values);
        steps.replaceChildren(...recoveryCodes(codes, close));
        steps.querySelector("button").focus();
      }, { cancel: close }));
    return steps;
  }, { close: again });
}

// recoveryCodes shows codes that must be kept now.
function recoveryCodes(codes, close) {
  const text = codes.join("\n");
  const save = button("Download", () => {
    const file = link("", URL.createObjectURL(new Blob([text + "\n"], { type: "text/plain" })));
    file.download = "recovery-codes.txt";
    file.click();
    URL.revokeObjectURL(file.href);
  });
  return [
    el("p", {}, "Keep these codes in a safe place. Each works once, if you lose the app. They are not shown again."),
    secret(text, "Recovery codes"),
    el("div", { class: "buttons" }, save, button("I have kept them", close, "primary")),
  ];
}

// drawQR draws a QR code: its rows, from the top, with a comma between them.
function drawQR(text) {
  const rows = text.split(",");
  const size = rows.length + 8; // with a quiet zone of 4 modules
  let path = "";
  rows.forEach((row, y) => {
    for (const run of row.matchAll(/1+/g)) path += `M${run.index + 4} ${y + 4}h${run[0].length}v1h-${run[0].length}z`;
  });
  return svg("svg", { class: "qr", role: "img", "aria-label": "QR code of the secret", viewBox: `0 0 ${size} ${size}`, "shape-rendering": "crispEdges" },
    svg("rect", { width: size, height: size, fill: "#fff" }), svg("path", { d: path, fill: "#000" }));
}

// showEnrolment is the only screen of a user who must add a second factor first.
function showEnrolment() {
  me = { id: Number(claims().sub), username: "", email: "", role: "member" };
  const done = async () => {
    if ((await api("GET", "users/me/totp")).on) start();
  };
  showPlain("Add a second factor",
    el("p", {}, "This service requires a second factor. Add one to go on: you need an authenticator app on your phone."),
    el("div", { class: "buttons" },
      actButton("Add a second factor", () => addFactor(done), "", "primary"),
      actButton("Log out", logOut)),
    settings.mail === "on" && el("div", {}, muted("If your e-mail address is not verified yet, do that first:"), verifyButton("me")));
}
