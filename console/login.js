// The screens before a login: the first admin, the login, a registration, a forgotten password.

// showPlain shows a narrow screen without the navigation.
function showPlain(title, ...content) {
  leaveScreen();
  part("top").hidden = true;
  part("main").className = "narrow";
  document.title = title;
  part("main").replaceChildren(el("h1", { id: "title", tabindex: -1 }, title), ...content.flat().filter(Boolean));
  (part("main").querySelector(".field:not([hidden]) input") ?? part("title")).focus();
}

// showFirstAdmin shows how to make the first admin, until there is one.
function showFirstAdmin() {
  showPlain("Welcome to userd",
    el("p", {}, "This service has no admin yet. Make one with these steps:"),
    el("ol", {},
      el("li", {}, "Open a terminal on the server, in the directory from which userd was started."),
      el("li", {}, "Replace NAME and EMAIL, run this command, and enter a new password:", secret(settings.firstAdmin, "Command")),
      el("li", {}, "Log in here with that name and password.")),
    el("p", { role: "status", class: "muted" }, "Waiting for the first admin: this page goes on by itself."),
    el("p", {}, button("Log in as a member", () => showLogin(), "link")));
  waitForAdmin(screenSignal());
}

async function waitForAdmin(signal) {
  try {
    for (;;) {
      await pause(3000, signal);
      const text = await (await send("GET", location.pathname, undefined, { signal })).text();
      if (/<html[^>]* data-first-admin=/.test(text)) continue;
      delete settings.firstAdmin;
      return showLogin("The first admin exists now. Log in as that admin.");
    }
  } catch (err) {
    if (!signal.aborted) waitForAdmin(signal);
  }
}

function showLogin(text) {
  const username = field("username", "Username or e-mail address", { id: "login-username", autocomplete: "username" });
  const password = field("password", "Password", { id: "login-password", type: "password", autocomplete: "current-password" });
  const act = async values => {
    loginName = values.username;
    try {
      await loggedIn(await logIn("api/login", values));
    } catch (err) {
      if (err.code === "second_factor_required") return showFactor(err.body.mfa_token);
      if (err.code === "invalid_credentials") err.message = "The username or the password is wrong";
      if (err.code === "pending_approval") err.message = "An admin must approve you before you can log in. Try again later";
      throw err;
    }
  };
  const register = {
    open: "Create an account", verified: "Create an account", approval: "Ask for an account",
  }[settings.registration];
  showPlain("Log in",
    el("p", { id: "message", role: "status" }, text),
    settings.firstAdmin && el("p", {}, "There is no admin yet. ", button("Make the first admin", showFirstAdmin, "link")),
    form([username, password], "Log in", act, { label: "Log in" }),
    el("p", { class: "buttons" },
      settings.mail === "on" && button("Forgot your password?", showForgot, "link"),
      register && button(register, showRegister, "link")),
    settings.mail !== "on" && muted("Forgot your password? Ask an admin for a link."),
    !register && muted("No account? Ask an admin for an invitation."));
}

// showFactor asks for a code, the second step of a login.
function showFactor(mfaToken) {
  const otp = otpField("login-otp");
  const act = async values => {
    try {
      await loggedIn(await logIn("api/login/factor", { mfa_token: mfaToken, otp: values.otp }));
    } catch (err) {
      if (err.code === "invalid_mfa_token") return showLogin("That took too long. Log in again.");
      throw err;
    }
  };
  showPlain("Enter a code", form([otp], "Log in", act, { label: "Second factor", cancel: () => showLogin() }),
    muted("Each code works once. If your app is lost, enter one of your recovery codes."));
}

async function loggedIn(result) {
  await start();
  if (me) tabs.postMessage({ user: me.id });
  if (result.recovery_codes_left !== undefined) say(`You have ${plural(result.recovery_codes_left, "recovery code")} left. Make new ones in your account.`);
}

function showForgot() {
  const login = field("login", "Username or e-mail address", { autocomplete: "username" });
  const act = async values => {
    const { message } = await (await send("POST", "api/password/forgot", { login: values.login })).json();
    showLogin(message + ".");
  };
  showPlain("Forgot your password?", el("p", {}, "You get an e-mail with a link that sets a new password."),
    form([login], "Send the link", act, { cancel: () => showLogin() }));
}

function showRegister() {
  const fields = [
    field("username", "Username", { autocomplete: "username", maxlength: 80 }),
    field("email", "E-mail address", { type: "email", autocomplete: "email", maxlength: 254 }),
    field("password", "Password", { type: "password", autocomplete: "new-password" }),
  ];
  const act = async values => {
    const answer = await send("POST", "api/register", values, { anonymous: true });
    if (answer.status === 202) return showLogin("To complete the registration, open the link in the message that is on its way.");
    if (settings.registration === "approval") return showLogin("An admin must approve you now. Then you can log in.");
    await loggedIn(await logIn("api/login", { username: values.username, password: values.password }));
  };
  showPlain("Create your account", form(fields, "Create account", act, { cancel: () => showLogin() }));
}
