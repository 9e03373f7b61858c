// Logs in with a second factor, in two steps and then in one:
// node client.js URL USERNAME PASSWORD CODE CODE
import createClient from "openapi-fetch";
import type { paths } from "./schema.js";

declare const process: { argv: string[] }; // of Node
const [url, username, password, first, second] = process.argv.slice(2) as [string, string, string, string, string];
const api = createClient<paths>({ baseUrl: url });

async function whoAmI(token: string) {
  const { data, error } = await api.GET("/api/users/{id}", {
    params: { path: { id: "me" } },
    headers: { Authorization: `Bearer ${token}` },
  });
  if (!data) throw new Error(JSON.stringify(error));
  console.log(data.username);
}

const step = await api.POST("/api/login", { body: { username, password } });
if (step.error?.code !== "second_factor_required" || !step.error.mfa_token) throw new Error(JSON.stringify(step));
console.log("two steps:", String(step.error.methods));
const two = await api.POST("/api/login/factor", { body: { mfa_token: step.error.mfa_token, otp: first } });
if (!two.data) throw new Error(JSON.stringify(two.error));
await whoAmI(two.data.access_token);

const one = await api.POST("/api/login", { body: { username, password, otp: second } });
if (!one.data) throw new Error(JSON.stringify(one.error));
console.log("one step");
await whoAmI(one.data.access_token);
