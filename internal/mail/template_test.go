package mail

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

func TestTemplateRenders(t *testing.T) {
	t.Parallel()
	for name, contents := range map[string]string{
		"with LF":                  "Subject: Hello {user}\n\n{user}:\n{link}\n\n{user}\n",
		"with CRLF":                "Subject: Hello {user}\r\n\r\n{user}:\r\n{link}\r\n\r\n{user}\r\n",
		"with a byte-order mark":   "\uFEFFSubject: Hello {user}\n\n{user}:\n{link}\n\n{user}\n",
		"with spaces in a subject": "Subject:  Hello {user} \n\n{user}:\n{link}\n\n{user}\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tmpl, err := ParseTemplate("reset.txt", contents, []string{"user", "link", "agent"}, "link")
			if err != nil {
				t.Fatal(err)
			}
			subject, text := tmpl.Render(map[string]string{"user": "{link}\r\nBcc: eve@example.com", "link": testLink, "agent": "unused"})
			const user = "{link}  Bcc: eve@example.com"
			if want := user + ":\n" + testLink + "\n\n" + user + "\n"; subject != "Hello "+user || text != want {
				t.Errorf("got %q %q, want %q", subject, text, want)
			}
		})
	}
}

func TestTemplateRefuses(t *testing.T) {
	t.Parallel()
	for contents, want := range map[string]string{
		"":                                                        "must begin with",
		"Hello\n\n{link}":                                         "must begin with",
		"Subject: Hello\n{link}":                                  "must begin with",
		"Subject: \n\n{link}":                                     "must begin with",
		"subject: Hello\n\n{link}":                                "must begin with",
		"Subject: a\nBcc: b@c\n\n{link}":                          "must begin with",
		"Subject: Hello\n\nno link":                               "the text must contain {link}",
		"Subject: {link}\n\nno link":                              "the text must contain {link}",
		"Subject: Hello\n\n{link} {passwd}":                       "unknown placeholder {passwd}; use {link}, {user}",
		"Subject: {passwd}\n\n{link}":                             "unknown placeholder {passwd}",
		"Subject: Hello\n\n{link} {Link}":                         "unknown placeholder {Link}",
		"Subject: Hello\n\n{link} { user }":                       "unknown placeholder {;",
		"Subject: Hello\n\n{link} {user":                          "unknown placeholder {user;",
		"Subject: Hello\n\n{link} {}":                             "unknown placeholder {}",
		"Subject: Hello\n\n{{link}}":                              "unknown placeholder {;",
		"Subject: Hello\n\n{link} {" + strings.Repeat("x", 1000):  "unknown placeholder {xxx",
		"Subject: Hello\n\n{link}\xff":                            "not valid UTF-8",
		"Subject: Hello\n\n{link}" + strings.Repeat("x", maxBody): "longer than",
	} {
		_, err := ParseTemplate("mail/reset.txt", contents, []string{"link", "user"}, "link")
		if err == nil || !strings.HasPrefix(err.Error(), "mail/reset.txt: ") || !strings.Contains(err.Error(), want) || len(err.Error()) > 200 {
			t.Errorf("the error of %.60q is %v, want %q", contents, err, want)
		}
	}
	if _, err := ParseTemplate("notice.txt", "Subject: Hello\n\nno link", []string{"link"}); err != nil {
		t.Errorf("a template that requires nothing is refused: %v", err)
	}
}

func TestReadTemplates(t *testing.T) {
	t.Parallel()
	builtIn := fstest.MapFS{
		"texts/login.txt": {Data: []byte("Subject: Login\n\nHello {name}")},
		"texts/reset.txt": {Data: []byte("Subject: Reset\n\n{link}")},
	}
	required := map[string][]string{"login": nil, "reset": {"link"}}
	known := []string{"name", "link"}
	read := func(files map[string]string) (map[string]*Template, error) {
		dir := t.TempDir()
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return ReadTemplates(builtIn, "texts", dir, known, required)
	}
	all, err := read(map[string]string{"reset.txt": "Subject: Own\n\nOpen {link}", "notes.md": "x"})
	if err != nil || len(all) != 2 || all["reset"].subject != "Own" || all["login"].subject != "Login" {
		t.Errorf("got %v, %v", all, err)
	}
	if all, err := ReadTemplates(builtIn, "texts", "", known, required); err != nil || all["reset"].subject != "Reset" {
		t.Errorf("without a directory: %v, %v", all, err)
	}
	for name, text := range map[string]string{
		"rest.txt":  "Subject: Own\n\n{link}",
		"reset.txt": "Subject: Own\n\nno link",
	} {
		if _, err := read(map[string]string{name: text}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ReadTemplates(builtIn, "texts", filepath.Join(t.TempDir(), "none"), known, required); err == nil {
		t.Error("a directory that does not exist is accepted")
	}
}
