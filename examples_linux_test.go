package main

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shellBlock returns the only block of shell commands in a page.
func shellBlock(t *testing.T, page string) string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```sh\n")
	if len(blocks) != 2 {
		t.Fatalf("%s has %d blocks of commands, want 1", page, len(blocks)-1)
	}
	block, _, _ := strings.Cut(blocks[1], "```")
	return block
}

// freeAddress returns an address of the loopback interface that is free.
func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// Each example runs with the commands in its README, on other ports and with another key.
func TestServicesThatVerifyTokens(t *testing.T) {
	if !*peers {
		t.Skip("runs with -peers")
	}
	for _, language := range []string{"go", "python", "node"} {
		t.Run(language, func(t *testing.T) {
			example, dir := filepath.Join("examples", "verify-"+language), t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(example)); err != nil {
				t.Fatal(err)
			}
			secret := strings.Repeat("secret", 8)
			p := &process{t: t, url: "http://" + freeAddress(t), client: &http.Client{Timeout: patience}}
			service := "http://" + freeAddress(t)
			commands := strings.NewReplacer("$(openssl rand -hex 32)", secret,
				"127.0.0.1:5000", strings.TrimPrefix(p.url, "http://"), "127.0.0.1:3000", strings.TrimPrefix(service, "http://"),
			).Replace(shellBlock(t, filepath.Join(example, "README.md")))
			startShell(t, dir, commands)
			testVerifier(t, p, service, newSigningKey("", []byte(secret)))
		})
	}
}

// startShell runs commands until the end of the test, with userd in the PATH.
func startShell(t *testing.T, dir, commands string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "userd"), fmt.Appendf(nil, "#!/bin/sh\nUSERD_TEST_RUN_MAIN=1 exec %s \"$@\"\n", self), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-euc", commands)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, os.Stderr, os.Stderr
	cmd.Env = append(os.Environ(), "PATH="+bin+":/usr/bin:"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
	})
}

// testVerifier checks which tokens a service accepts. It knows nothing but the event feed of p.
func testVerifier(t *testing.T, p *process, service string, key *signingKey) {
	ask := func(token string) (status int) {
		r, err := http.NewRequest("GET", service, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		resp, err := p.client.Do(r)
		if err != nil {
			return 0 // it does not listen yet
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	await(t, "the service answers", func() bool { return ask("") == 401 })
	ann := p.register("ann")
	first := p.login("ann", goodPassword)
	if status := ask(first); status != 200 {
		t.Errorf("a token of a login: %d", status)
	}

	// userd does not know this session, so only a service that verifies tokens itself accepts it.
	made := func(change func(*claims)) string {
		now := time.Now().Unix()
		c := claims{issued: now, id: "x", subject: ann, notBefore: now, expires: now + 60, session: 1 << 40,
			tokenNames: tokenNames{issuer: "https://id.example.com", audience: []string{"others", "notes"}}}
		change(&c)
		return key.sign(c)
	}
	good := func() string { return made(func(*claims) {}) }
	await(t, "the service verifies a token", func() bool { return ask(good()) == 200 })
	if status := ask(made(func(c *claims) { c.audience = []string{"notes"} })); status != 200 {
		t.Errorf("a token with one audience: %d", status)
	}
	parts := strings.Split(good(), ".")
	encode, now := base64.RawURLEncoding.EncodeToString, time.Now().Unix()
	signed := func(header, payload string) string {
		input := encode([]byte(header)) + "." + encode([]byte(payload))
		return input + "." + encode(key.mac(input))
	}
	another := fmt.Sprintf(`{"iat":%d,"type":"refresh","sub":"1","nbf":%d,"aud":"notes","iss":"https://id.example.com","exp":%d,"sid":"1"}`, now, now, now+60)
	for claim, token := range map[string]string{
		"one that has expired":          made(func(c *claims) { c.expires = now }),
		"one of the future":             made(func(c *claims) { c.issued = now + 120 }),
		"one of another issuer":         made(func(c *claims) { c.issuer = "https://other.example.com" }),
		"one without an issuer":         made(func(c *claims) { c.issuer = "" }),
		"one for another audience":      made(func(c *claims) { c.audience = []string{"others"} }),
		"one without an audience":       made(func(c *claims) { c.audience = nil }),
		"one of another type":           signed(`{"alg":"HS256","typ":"JWT"}`, another),
		"one with another algorithm":    signed(`{"alg":"HS512","typ":"JWT"}`, strings.Replace(another, "refresh", "access", 1)),
		"one without a signature":       parts[0] + "." + parts[1] + ".",
		"one of the algorithm none":     encode([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + parts[1] + ".",
		"one that another key signed":   newSigningKey("", []byte(strings.Repeat("x", 32))).sign(claims{}),
		"one with a changed claim":      parts[0] + "." + encode([]byte(strings.Replace(another, "refresh", "access", 1))) + "." + parts[2],
		"a text with too few parts":     "a.b",
		"a text that is not in base 64": "ä.ö.ü",
	} {
		if status := ask(token); status != 401 {
			t.Errorf("%s: %d", claim, status)
		}
	}

	second := p.login("ann", goodPassword)
	if status := ask(second); status != 200 {
		t.Errorf("a token of a new login: %d", status)
	}
	p.must(second, "POST", "/api/logout", "").want(t, 204, "")
	await(t, "a token is refused after the logout", func() bool { return ask(second) == 401 })
	if status := ask(first); status != 200 {
		t.Errorf("a token of another session after the logout: %d", status)
	}
	before := good()
	p.must(first, "PUT", "/api/users/me", `{"password":"another good password"}`).want(t, 200, "")
	await(t, "a token from before a new password is refused", func() bool { return ask(before) == 401 })
	await(t, "a token from after a new password is accepted", func() bool { return ask(good()) == 200 })
}
