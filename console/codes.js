// The pages that links with codes open: /reset, /invite, /verify, /change and /undo.

// What the page does with a code, by the prefix of the code.
const resetAct = {
  title: "Set a new password", send: "Set password", fields: ["password"], label: "New password",
  path: "api/password/reset",
  done: () => "Your password has changed. Log in with the new one.",
  again: "Ask for a new link where you log in, or ask an admin.",
};
const codeActs = {
  ur: resetAct,
  ul: { ...resetAct, again: "Ask an admin for a new one." },
  ui: {
    title: "Create your account", send: "Create account", fields: ["username", "email", "password"],
    path: "api/register", member: "invitation",
    done: () => "Your account exists now. Log in with your new password.",
    again: "Ask an admin for a new invitation.",
  },
  uv: {
    title: "Confirm your e-mail address", send: "Confirm address", fields: ["password"], autocomplete: "current-password",
    intro: "Enter the password of your account, to show that the account is yours.",
    path: "api/email/verify",
    done: user => `The address ${user.email} is confirmed. ` + (user.pending
      ? "You can log in after an admin has approved your account."
      : `You can log in as ${user.username}.`),
    again: "If you can log in, ask for a new link there. Otherwise register again.",
  },
  uc: {
    title: "Confirm your new address", send: "Confirm the new address", fields: [],
    intro: "The address that got this link becomes the address of your account. If you did not ask for that, close this page.",
    path: "api/email/change",
    done: () => "Your e-mail address has changed.",
    again: "Log in and change the address again.",
  },
  uu: {
    title: "Restore your old address", send: "Restore the old address", fields: [],
    intro: "The address that got this link becomes the address of your account again. This logs out all devices and ends your password, and you get an e-mail with a link to set a new one.",
    path: "api/email/undo",
    done: () => "Your old address is restored, and all devices are logged out. You get an e-mail now: open the link in it, and set a new password.",
    again: "Ask an admin for help.",
  },
};
let openedCode = ""; // the code of the form on the page

// endCode takes the form away: its code does not work any more.
function endCode(text) {
  openedCode = "";
  part("form")?.remove();
  part("intro")?.remove();
  part("message").textContent = text;
  if (settings.console === "on") part("message").after(el("p", {}, link("Go to the login", "console")));
  part("title").focus();
}

// startCode reads the code from the fragment, and removes it from the address and from the history of the tab.
function startCode() {
  const code = location.hash.slice(1);
  if (code === "" && openedCode !== "") return;
  history.replaceState(null, "", location.pathname);
  const act = code[2] === "_" && codeActs[code.slice(0, 2)];
  openedCode = act ? code : "";
  showPlain(act ? act.title : "Your account",
    act?.intro && el("p", { id: "intro" }, act.intro),
    el("p", { id: "message", role: "status" }),
    act && codeForm(code, act));
  if (!act) endCode("This link is not complete. Open the whole link that you got.");
}

// codeForm makes the form of an act. It shows more fields than those of the act if an answer says
// that they are necessary.
function codeForm(code, act) {
  const username = field("username", "Username", { id: "username", autocomplete: "username", maxlength: 80 });
  const email = field("email", "E-mail address", {
    id: "email", type: "email", autocomplete: "email", maxlength: 254, hint: "If the invitation was sent to an address, enter that one.",
  });
  const password = field("password", act.label ?? "Password", { id: "password", type: "password", autocomplete: act.autocomplete ?? "new-password" });
  const otp = otpField("otp", "Your account has a second factor.");
  const fields = [username, email, password, otp];
  for (const x of fields) x.box.hidden = !act.fields.includes(x.id);
  return form(fields, act.send, async values => {
    const body = { [act.member ?? "code"]: code };
    for (const x of fields) if (!x.box.hidden) body[x.id] = values[x.id];
    try {
      endCode(act.done(await (await send("POST", act.path, body)).json()));
    } catch (err) {
      if (err.code === "invalid_code") return endCode(`This link is invalid, has expired or was used. ${act.again}`);
      if (err.code === "username_taken") username.box.hidden = false;
      if (err.status === 401 && !needsCode(err)) err.fields = { password: "The password is wrong. Enter the password of your account." };
      return askCode(err, otp);
    }
  }, { id: "form", label: act.title });
}

function startCodes() {
  addEventListener("hashchange", startCode);
  startCode();
}
