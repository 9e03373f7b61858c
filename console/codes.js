// The pages that links with codes open: /reset, /invite, /verify, /change and /undo. Their form
// is in console.html, so that it is readable without style.

const tell = text => { part("message").textContent = text; };
const codeFields = ["username", "email", "password", "otp"];

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
    title: "Create your account", send: "Create account", fields: ["username", "email", "password"], label: "Password",
    path: "api/register", member: "invitation",
    done: () => "Your account exists now. Log in with your new password.",
    again: "Ask an admin for a new invitation.",
  },
  uv: {
    title: "Confirm your e-mail address", send: "Confirm address", fields: ["password"], label: "Password",
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
const opened = { code: "", act: null, fields: [], busy: false }; // what the page does now

// showFields shows these fields, and returns the element to focus: the first one, or the title.
function showFields(shown) {
  opened.fields = shown;
  for (const name of codeFields) part(name).parentElement.hidden = !shown.includes(name);
  return part(shown[0] ?? "title");
}

// endCode hides the form: its code does not work any more.
function endCode(text) {
  opened.code = "";
  part("form").reset();
  part("password").type = "password";
  part("form").hidden = true;
  part("intro").textContent = "";
  part("after").hidden = text === "" || settings.console !== "on";
  part("title").focus();
  tell(text);
}

// startCode reads the code from the fragment, and removes it from the address and from the history of the tab.
function startCode() {
  const text = location.hash.slice(1);
  if (text === "" && opened.code !== "") return;
  history.replaceState(null, "", location.pathname);
  const act = codeActs[text.slice(0, 2)];
  if (!act || text[2] !== "_") return endCode("This link is not complete. Open the whole link that you got.");
  endCode("");
  opened.code = text;
  opened.act = act;
  document.title = part("title").textContent = act.title;
  part("intro").textContent = act.intro ?? "";
  part("password-label").textContent = act.label ?? "";
  part("password").autocomplete = text.startsWith("uv") ? "current-password" : "new-password";
  part("send").textContent = act.send;
  part("form").hidden = false;
  showFields(act.fields).focus();
}

// refuseCode shows what to do about an answer that reports an error.
function refuseCode(err) {
  if (err.status === 429) return tell(waitText(err.retryAfter || 60));
  const { fields } = opened;
  if (err.code === "invalid_code") return endCode(`This link is invalid, has expired or was used. ${opened.act.again}`);
  let wrong = fields.find(name => err.fields?.[name]) ?? fields.at(-1) ?? "send";
  if (err.code === "username_taken") {
    if (!fields.includes("username")) showFields(["username", ...fields]);
    wrong = "username";
    err.message += ". Choose another one.";
  }
  if (needsCode(err)) {
    if (!fields.includes("otp")) showFields([...fields, "otp"]);
    wrong = "otp";
    if (err.code === "second_factor_required") err.message = "Your account has a second factor. Enter a code of your authenticator app, or a recovery code.";
  } else if (err.status === 401) err.message = "The password is wrong. Enter the password of your account.";
  tell(err.message);
  part(wrong).focus();
}

async function submitCode(event) {
  event.preventDefault();
  if (opened.busy) return;
  opened.busy = true;
  tell("Please wait.");
  const body = { [opened.act.member ?? "code"]: opened.code };
  for (const name of opened.fields) body[name] = part(name).value;
  try {
    endCode(opened.act.done(await (await send("POST", opened.act.path, body)).json()));
  } catch (err) {
    if (err instanceof ApiError && err.status !== 0 && err.status < 500) refuseCode(err);
    else tell(unreachable);
  } finally {
    opened.busy = false;
  }
}

function startCodes() {
  part("main").className = "narrow";
  part("show").addEventListener("change", event => { part("password").type = event.target.checked ? "text" : "password"; });
  part("form").addEventListener("submit", submitCode);
  addEventListener("hashchange", startCode);
  startCode();
}
