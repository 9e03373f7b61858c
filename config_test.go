package main

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"userd/internal/setting"
	"userd/internal/validate"
)

func TestTheDefaultsAreTheTutorials(t *testing.T) {
	t.Parallel()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	got, err := configured(nil, getenvOf(nil))
	if err != nil {
		t.Fatal(err)
	}
	want := config{
		settings: settings{
			accessTTL:     15 * time.Minute,
			refreshTTL:    720 * time.Hour,
			sessionLife:   4320 * time.Hour,
			registration:  registrationOpen,
			directory:     directoryNames,
			rateLimit:     switchOn,
			notices:       switchOn,
			mailsPerHour:  300,
			passwords:     validate.Policy{Minimum: 8},
			requireFactor: requireFactorOff,
		},
		database:      filepath.Join(dir, "app.db"),
		addr:          "127.0.0.1:5000",
		acmeDirectory: "https://acme-v02.api.letsencrypt.org/directory",
		secretFrom:    "kept in the database",

		eventRetention: 400 * 24 * time.Hour,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	for _, o := range options {
		given, err := configured([]string{"-" + o.flag, o.standard}, getenvOf(nil))
		if err != nil || !reflect.DeepEqual(given, want) {
			t.Errorf("-%s %q makes %+v, %v, which is not the default", o.flag, o.standard, given, err)
		}
	}
}

func TestABadValueIsRefusedInOneLineThatNamesTheSetting(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	database := "DATABASE_URL=" + filepath.Join(dir, "app.db")
	flags := make(map[string]string)
	for _, o := range options {
		flags[o.env] = "-" + o.flag
	}
	tried := make(map[string]bool)
	for _, c := range []struct{ setting, value, fault string }{
		{"DATABASE_URL", "sqlite:app.db", "sqlite:///relative.db"},
		{"DATABASE_URL", "file:app.db", "begin it with ./"},
		{"DATABASE_URL", "mysql://localhost/users", "SQLite"},
		{"DATABASE_URL", "sqlite://app.db", "sqlite:///PATH"},
		{"DATABASE_URL", "sqlite:///", "must be a file"},
		{"DATABASE_URL", ":memory:", "must be a file"},
		{"DATABASE_URL", "sqlite:///:memory:", "must be a file"},
		{"ADDR", "5000", "HOST:PORT"},
		{"ADDR", "localhost", "HOST:PORT"},
		{"ADDR", "::1:5000", "HOST:PORT"},
		{"ADDR", "http://127.0.0.1:5000", "HOST:PORT"},
		{"ADDR", "127.0.0.1:", "port"},
		{"ADDR", "127.0.0.1:http", "port"},
		{"ADDR", "127.0.0.1:65536", "65535"},
		{"ADDR", "127.0.0.1:-1", "port"},
		{"ADDR", "127.0.0.1:00", "port"},
		{"METRICS_ADDR", "9090", "HOST:PORT"},
		{"METRICS_ADDR", "127.0.0.1:metrics", "port"},
		{"PORT", "http", "port"},
		{"PORT", "65536", "65535"},
		{"PORT", "127.0.0.1:5000", "port"},
		{"HOST", "machine.example", "must be an IP address"},
		{"HOST", "x86_64-conda-linux-gnu", "must be an IP address"},
		{"HOST", "0.0.0.0:5000", "must be an IP address"},
		{"HTTPS_DOMAIN", "localhost", "example.com"},
		{"HTTPS_DOMAIN", "*.example.com", "without *"},
		{"HTTPS_DOMAIN", "example.com,192.0.2.1", "element 2 is not a domain name"},
		{"HTTPS_DOMAIN", "example.com:443", "element 1 is not a domain name"},
		{"HTTPS_DOMAIN", "https://example.com", "element 1 is not a domain name"},
		{"HTTPS_DOMAIN", "example.com.", "element 1 is not a domain name"},
		{"HTTPS_DOMAIN", "münchen.example", "xn--"},
		{"HTTPS_DOMAIN", "example.com ../x.example", "is not a domain name"},
		{"ACME_DIRECTORY", "http://ca.example/directory", "https://"},
		{"ACME_DIRECTORY", "ca.example", "https://"},
		{"TLS_CERT", "none.pem", "no such file"},
		{"TLS_KEY", "none.pem", "no such file"},
		{"TLS_KEY", ".", "is a directory"},
		{"JWT_ACCESS_TOKEN_EXPIRES", "soon", "90m"},
		{"JWT_ACCESS_TOKEN_EXPIRES", "15 m", "90m"},
		{"JWT_ACCESS_TOKEN_EXPIRES", "0", "1s"},
		{"JWT_ACCESS_TOKEN_EXPIRES", "0.5", "1s"},
		{"JWT_ACCESS_TOKEN_EXPIRES", "-15m", "1s"},
		{"JWT_ACCESS_TOKEN_EXPIRES", "86401", "24h"},
		{"JWT_ACCESS_TOKEN_EXPIRES", "87600h", "24h"},
		{"JWT_REFRESH_TOKEN_EXPIRES", "100000h", "ten years"},
		{"JWT_REFRESH_TOKEN_EXPIRES", "False", "90m"},
		{"JWT_REFRESH_TOKEN_EXPIRES", "0s", "1s"},
		{"JWT_REFRESH_TOKEN_EXPIRES", "99999999999", "ten years"},
		{"REGISTRATION", "maybe", " or closed"},
		{"REGISTRATION", "Open", " or closed"},
		{"DIRECTORY", "all", "full, names or self"},
		{"TRUSTED_PROXIES", "10.0.0.0/33", "element 1 is neither"},
		{"TRUSTED_PROXIES", "10.0.0.1, proxy.example", "element 2 is neither"},
		{"TRUSTED_PROXIES", "10.0.0.1 10.0.0.2", "CIDR"},
		{"CORS_ORIGINS", "*", "is not an origin"},
		{"CORS_ORIGINS", "null", "is not an origin"},
		{"CORS_ORIGINS", "https://*.example.com", "is not an origin"},
		{"CORS_ORIGINS", "app.example.com", "is not an origin"},
		{"CORS_ORIGINS", "https://app.example.com/", "is not an origin"},
		{"CORS_ORIGINS", "https://app.example.com:443", "is not an origin"},
		{"CORS_ORIGINS", "https://App.example.com", "is not an origin"},
		{"CORS_ORIGINS", "https://app.example.com,ftp://example.com", "element 2 is not an origin"},
		{"PASSWORD_MIN_LENGTH", "7", "8 to 64"},
		{"PASSWORD_MIN_LENGTH", "65", "8 to 64"},
		{"PASSWORD_MIN_LENGTH", "many", "8 to 64"},
		{"JWT_ENCODE_ISSUER", "my service", "without spaces"},
		{"JWT_ENCODE_ISSUER", "caf\u00e9", "ASCII"},
		{"JWT_ENCODE_ISSUER", strings.Repeat("a", 201), "200 bytes"},
		{"JWT_ENCODE_AUDIENCE", strings.Repeat("a,", 101), "200 bytes"},
		{"JWT_DECODE_AUDIENCE", "two words", "without spaces"},
		{"RATE_LIMIT", "never", "on or off"},
		{"SESSION_LIFETIME", "180d", "0 for no limit"},
		{"SESSION_LIFETIME", "-1", "0 for no limit"},
		{"EVENT_RETENTION", "400d", "9600h"},
		{"APP_URL", "id.example.com", "must be a URL"},
		{"APP_URL", "//id.example.com", "https://"},
		{"APP_URL", "https://", "must be a URL"},
		{"APP_URL", "http://id.example.com", "loopback"},
		{"APP_URL", "http://192.0.2.1", "loopback"},
		{"APP_URL", "http://localhost.example.com", "loopback"},
		{"APP_URL", "ftp://id.example.com", "https://"},
		{"VERIFY_URL", "https://app.example.com/verify", "{code}"},
		{"MAIL_FROM", "no-reply", "no-reply@example.com"},
		{"MAIL_TEMPLATES", "/does/not/exist", "no such file"},
		{"MAIL_LIMIT", "0", "from 1 to 100000"},
		{"MAIL_LIMIT", "100001", "from 1 to 100000"},
		{"NOTICES", "yes", "on or off"},
		{"CONSOLE", "yes", "on or off"},
		{"REQUIRE_FACTOR", "yes", "off, admins or all"},
		{"RESET_URL", "https://app.example.com/reset", "{code}"},
		{"RESET_URL", "https://app.example.com/{code}/{code}", "once"},
		{"RESET_URL", "http://app.example.com/{code}", "loopback"},
		{"INVITE_URL", "https://app.example.com/invite", "{code}"},
		{"EMAIL_DOMAINS", "example.com,*.example.org", "element 2 is not a domain name"},
		{"EMAIL_DOMAINS", "..example.com", "is not a domain name"},
		{"EMAIL_DOMAINS", ".", "is not a domain name"},
		{"EVENT_RETENTION", "-1", "0 for no limit"},
		{"EVENT_RETENTION", "0.5s", "1s"},
		{"LOG_FORMAT", "xml", "text or json"},
		{"LOG_LEVEL", "loud", "debug, info, warn or error"},
		{"LOG_LEVEL", "INFO", "debug, info, warn or error"},
	} {
		tried[c.setting] = true
		repeated := fmt.Sprintf("=%q: ", c.value)
		if strings.HasPrefix(c.setting, "TLS_") { // may be the key itself
			repeated = ": must name a readable file: "
		} else if c.setting == "MAIL_TEMPLATES" {
			repeated = ": must name a readable directory: "
		}
		t.Run(c.setting+"="+c.value, func(t *testing.T) {
			t.Parallel()
			userdHere(t, "", []string{database, c.setting + "=" + c.value}).wantFailure(t, 2, c.setting+repeated, c.fault)
		})
		if flag := flags[c.setting]; flag != "" {
			t.Run(flag+" "+c.value, func(t *testing.T) {
				t.Parallel()
				userdHere(t, "", []string{database}, flag, c.value).wantFailure(t, 2, flag+repeated, c.fault)
			})
		}
	}
	for _, o := range options {
		if !tried[o.env] {
			t.Errorf("no bad value of %s was tried", o.env)
		}
	}
	t.Cleanup(func() { wantFiles(t, dir) })
}

func TestARefusedDatabaseURLIsPrintedWithoutItsPassword(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for url, printed := range map[string]string{
		"mysql+pymysql://root:secret@db.example:3306/users":  `"mysql+pymysql://db.example:3306/users"`,
		"postgres://secret@db.example/users":                 `"postgres://db.example/users"`,
		"postgres://db.example/users?password=secret":        `"postgres://db.example/users"`,
		"postgres://db.example/users?password=a@secret":      `"postgres:…"`,
		"postgres://root:se/secret@db.example":               `"postgres:…"`,
		"postgres://root:12/secret@db.example":               `"postgres:…"`,
		"postgres://root:12#secret@db.example":               `"postgres:…"`,
		"postgres://root:12?secret@db.example":               `"postgres:…"`,
		"postgres://root:%zzsecret@db.example":               `"postgres:…"`,
		"postgres://root:secret%40db.example/users":          `"postgres:…"`,
		"postgres://root:secret":                             `"postgres:…"`,
		"jdbc:postgresql://db.example?password=secret":       `"jdbc:…"`,
		"root:secret@db.example":                             `"root:…"`,
		"'postgres://root:secret@db.example'":                `"'postgres://…"`,
		" postgres://root:secret@db.example":                 `" postgres://…"`,
		"postgres_x://root:secret@db.example":                `"postgres_x://…"`,
		"sqlite+pysqlcipher://:secret@/app.db":               `"sqlite+pysqlcipher:///app.db"`,
		"sqlite://:secret@/app.db":                           `"sqlite:///app.db"`,
		"sqlite:///app.db?key=secret":                        `"sqlite:///app.db"`,
		"sqlite:app.db?key=secret":                           `"sqlite:app.db"`,
		"file:" + filepath.Join(dir, "app.db") + "?k=secret": `"file://` + filepath.Join(dir, "app.db") + `"`,
	} {
		for _, got := range []result{
			userdHere(t, "", []string{"DATABASE_URL=" + url}),
			userdHere(t, "", []string{"DATABASE_URL=" + url}, "user", "list"),
			userdHere(t, "", nil, "-database", url),
		} {
			got.wantFailure(t, 2, "="+printed+": ")
			if strings.Contains(got.stderr, "secret") {
				t.Errorf("%s: %s", url, got.stderr)
			}
		}
	}
}

// A value that is wrong may be a secret that belongs elsewhere.
func TestNoErrorAboutASettingRepeatsASecret(t *testing.T) {
	t.Parallel()
	const secret = "s3cret"
	hidden := []string{ // in every setting
		"https://root:s3cret@db.example/users",
		"https://s3cret@db.example,x",
		"https://root:s3cret,x@db.example",
		"https://db.example/users?password=s3cret",
		"//root:s3cret@db.example/users",
		"host=db user=root password=s3cret",
		"Server=db;User=root;Pwd=s3cret",
		"-----BEGIN PRIVATE KEY-----\ns3cret\n-----END PRIVATE KEY-----\n",
	}
	anyText := []string{"ACME_DIRECTORY", "JWT_ENCODE_ISSUER", "JWT_ENCODE_AUDIENCE", "JWT_DECODE_AUDIENCE"} // some of them are good there
	names := []string{"HOST", "PORT"}
	for _, o := range options {
		names = append(names, o.env)
	}
	for _, x := range secrets {
		names = append(names, x.env+"_FILE")
	}
	for _, name := range names {
		values := hidden
		if o := slices.IndexFunc(options, func(o option) bool { return o.env == name }); strings.HasSuffix(name, "_FILE") || o >= 0 && options[o].value == "FILE" {
			values = append(slices.Clone(hidden), secret, "/"+secret, secret+strings.Repeat("k", 300))
		}
		for _, value := range values {
			t.Run(name+"="+value, func(t *testing.T) {
				t.Parallel()
				environ := []string{"DATABASE_URL=" + filepath.Join(t.TempDir(), "app.db"), name + "=" + value}
				if name == "HOST" || name == "PORT" {
					environ = append(environ, "ADDR=")
				}
				got := userdHere(t, "", environ)
				if got.status != 0 || !slices.Contains(anyText, name) {
					got.wantFailure(t, 2, name)
				}
				if strings.Contains(strings.ToLower(got.stderr), secret) {
					t.Errorf("it prints %s", got.stderr)
				}
			})
		}
	}
}

func TestASettingIsTakenFromTheFlagThenTheEnvironmentThenTheDefault(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		claim   string
		environ []string
		args    string
		get     func(c config) any
		want    any
	}{
		{"a variable overrides the default", []string{"ADDR=127.0.0.1:81"}, "", func(c config) any { return c.addr }, "127.0.0.1:81"},
		{"a flag overrides the variable", []string{"ADDR=127.0.0.1:81"}, "-addr 127.0.0.1:82", func(c config) any { return c.addr }, "127.0.0.1:82"},
		{"a flag may have two dashes and an equals sign", nil, "--addr=127.0.0.1:82", func(c config) any { return c.addr }, "127.0.0.1:82"},
		{"the last of two flags counts", nil, "-addr 127.0.0.1:82 -addr 127.0.0.1:83", func(c config) any { return c.addr }, "127.0.0.1:83"},
		{"an empty variable is none", []string{"ADDR="}, "", func(c config) any { return c.addr }, "127.0.0.1:5000"},
		{"PORT sets only the port", []string{"PORT=81"}, "", func(c config) any { return c.addr }, "127.0.0.1:81"},
		{"PORT may be 0", []string{"PORT=0"}, "", func(c config) any { return c.addr }, "127.0.0.1:0"},
		{"HOST sets only the host", []string{"HOST=0.0.0.0"}, "", func(c config) any { return c.addr }, "0.0.0.0:5000"},
		{"HOST and PORT set the address", []string{"HOST=0.0.0.0", "PORT=81"}, "", func(c config) any { return c.addr }, "0.0.0.0:81"},
		{"HOST may be IPv6", []string{"HOST=::", "PORT=81"}, "", func(c config) any { return c.addr }, "[::]:81"},
		{"HOST may be IPv6 in brackets", []string{"HOST=[::1]"}, "", func(c config) any { return c.addr }, "[::1]:5000"},
		{"HOST may be localhost", []string{"HOST=localhost"}, "", func(c config) any { return c.addr }, "localhost:5000"},
		{"ADDR overrides HOST and PORT, also bad ones", []string{"ADDR=127.0.0.1:81", "HOST=machine", "PORT=http"}, "", func(c config) any { return c.addr }, "127.0.0.1:81"},
		{"HOST with HTTPS_DOMAIN leaves the port of HTTPS", []string{"HTTPS_DOMAIN=example.com", "HOST=0.0.0.0"}, "", func(c config) any { return c.addr }, "0.0.0.0:443"},
		{"-addr overrides PORT", []string{"PORT=81"}, "-addr 0.0.0.0:82", func(c config) any { return c.addr }, "0.0.0.0:82"},
		{"an address may be all of the machine's", nil, "-addr :82", func(c config) any { return c.addr }, ":82"},
		{"an address may be IPv6", nil, "-addr [::1]:82", func(c config) any { return c.addr }, "[::1]:82"},
		{"the metrics have no address", nil, "", func(c config) any { return c.metricsAddr }, ""},
		{"unless they are given one", []string{"METRICS_ADDR=127.0.0.1:9090"}, "", func(c config) any { return c.metricsAddr }, "127.0.0.1:9090"},
		{"which the flag takes away", []string{"METRICS_ADDR=127.0.0.1:9090"}, "-metrics-addr=", func(c config) any { return c.metricsAddr }, ""},
		{"the default with HTTPS_DOMAIN is the port of HTTPS", []string{"HTTPS_DOMAIN=example.com"}, "", func(c config) any { return c.addr }, ":443"},
		{"ADDR overrides that", []string{"HTTPS_DOMAIN=example.com", "ADDR=127.0.0.1:81"}, "", func(c config) any { return c.addr }, "127.0.0.1:81"},
		{"and PORT", []string{"HTTPS_DOMAIN=example.com", "PORT=81"}, "", func(c config) any { return c.addr }, "127.0.0.1:81"},
		{"domains are in lower case, each once", nil, "-https-domain Example.com,,a.example.com,example.COM,xn--mnchen-3ya.example", func(c config) any { return fmt.Sprint(c.domains) }, "[example.com a.example.com xn--mnchen-3ya.example]"},
		{"another ACME server can be named", []string{"ACME_DIRECTORY=https://ca.example:14000/dir"}, "", func(c config) any { return c.acmeDirectory }, "https://ca.example:14000/dir"},
		{"a time may be a duration", []string{"JWT_ACCESS_TOKEN_EXPIRES=1h30m"}, "", func(c config) any { return c.accessTTL }, 90 * time.Minute},
		{"a time may be seconds", []string{"JWT_ACCESS_TOKEN_EXPIRES=900"}, "", func(c config) any { return c.accessTTL }, 15 * time.Minute},
		{"the other time is the refresh token's", nil, "-refresh-ttl 3600", func(c config) any { return c.refreshTTL }, time.Hour},
		{"registration can be closed", []string{"REGISTRATION=closed"}, "", func(c config) any { return c.registration }, registrationClosed},
		{"and opened again by the flag", []string{"REGISTRATION=closed"}, "-registration open", func(c config) any { return c.registration }, registrationOpen},
		{"the directory can be full", []string{"DIRECTORY=full"}, "", func(c config) any { return c.directory }, directoryFull},
		{"the directory can be self", nil, "-directory self", func(c config) any { return c.directory }, directorySelf},
		{"proxies are networks and addresses", []string{"TRUSTED_PROXIES=10.1.2.3/8, ::1,192.0.2.7"}, "", func(c config) any { return fmt.Sprint(c.trustedProxies) }, "[10.0.0.0/8 ::1/128 192.0.2.7/32]"},
		{"IPv4 proxies in IPv6", []string{"TRUSTED_PROXIES=::ffff:10.0.0.0/104,::ffff:192.0.2.7"}, "", func(c config) any { return fmt.Sprint(c.trustedProxies) }, "[10.0.0.0/8 192.0.2.7/32]"},
		{"a flag's proxies replace the variable's", []string{"TRUSTED_PROXIES=10.0.0.0/8"}, "-trusted-proxies 192.0.2.7", func(c config) any { return fmt.Sprint(c.trustedProxies) }, "[192.0.2.7/32]"},
		{"origins are kept as they are", []string{"CORS_ORIGINS=https://app.example.com, http://localhost:3000,"}, "", func(c config) any { return fmt.Sprint(c.corsOrigins) }, "[https://app.example.com http://localhost:3000]"},
		{"a password has 8 characters at least", nil, "", func(c config) any { return c.passwords }, validate.Policy{Minimum: 8}},
		{"or more", []string{"PASSWORD_MIN_LENGTH=15", "JWT_ENCODE_ISSUER=https://users.example.com"}, "", func(c config) any { return c.passwords }, validate.Policy{Minimum: 15, Issuer: "https://users.example.com"}},
		{"a token is for those that it names", nil, "-audience a,b", func(c config) any { return fmt.Sprint(c.accepted) }, "[a b]"},
		{"unless others are accepted", []string{"JWT_ENCODE_AUDIENCE=a,b", "JWT_DECODE_AUDIENCE=b,c"}, "", func(c config) any { return fmt.Sprint(c.audience, c.accepted) }, "[a b] [b c]"},
		{"the limits can be off", []string{"RATE_LIMIT=off"}, "", func(c config) any { return c.rateLimit }, switchOff},
		{"a session can live for ever", []string{"SESSION_LIFETIME=0"}, "", func(c config) any { return c.sessionLife }, time.Duration(0)},
		{"a session can live for a day", nil, "-session-lifetime 24h", func(c config) any { return c.sessionLife }, 24 * time.Hour},
		{"events can be kept forever", []string{"EVENT_RETENTION=0"}, "", func(c config) any { return c.eventRetention }, time.Duration(0)},
		{"or for seconds", nil, "-event-retention 86400", func(c config) any { return c.eventRetention }, 24 * time.Hour},
		{"the log can be text", []string{"LOG_FORMAT=text"}, "", func(c config) any { return c.logFormat }, "text"},
		{"the log's level can be set", []string{"LOG_LEVEL=error"}, "-log-level debug", func(c config) any { return c.logLevel.String() }, "DEBUG"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			t.Parallel()
			got, err := configured(strings.Fields(c.args), getenvOf(c.environ))
			if err != nil {
				t.Fatal(err)
			}
			if value := c.get(got); value != c.want {
				t.Errorf("got %v, want %v", value, c.want)
			}
		})
	}
}

func TestTheImageListensOnThePortOfAPlatform(t *testing.T) {
	t.Parallel()
	dockerfile, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	var environ []string
	for _, env := range regexp.MustCompile(`(?m)^ENV (\w+=\S+)$`).FindAllStringSubmatch(string(dockerfile), -1) {
		environ = append(environ, env[1])
	}
	for port, want := range map[string]string{"": "0.0.0.0:5000", "8080": "0.0.0.0:8080"} {
		if c, err := configured(nil, getenvOf(append(environ, "PORT="+port))); err != nil || c.addr != want {
			t.Errorf("with PORT=%s the image listens on %s, %v", port, c.addr, err)
		}
	}
}

func TestTheSigningKeyIsTakenFromOnePlace(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	long := strings.Repeat("k", 32)
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	empty, newlines, good := write("empty", ""), write("newlines", "\r\n\n"), write("good", long+"\n")
	short := write("short", "short-secret\n")
	marked, onlyMark := write("marked", setting.ByteOrderMark+long[1:]+"\r\n"), write("mark", setting.ByteOrderMark+"\n")
	for _, c := range []struct {
		claim   string
		environ []string
		words   []string
	}{
		{"two keys are refused", []string{"JWT_SECRET_KEY=" + long, "JWT_SECRET_KEY_FILE=" + good}, []string{"JWT_SECRET_KEY", "JWT_SECRET_KEY_FILE", "both"}},
		{"two keys are refused though they are the same", []string{"JWT_SECRET_KEY=x", "JWT_SECRET_KEY_FILE=" + filepath.Join(dir, "none")}, []string{"both"}},
		{"an empty file is refused", []string{"JWT_SECRET_KEY_FILE=" + empty}, []string{"JWT_SECRET_KEY_FILE: the file is empty"}},
		{"a file of line breaks is refused", []string{"JWT_SECRET_KEY_FILE=" + newlines}, []string{"JWT_SECRET_KEY_FILE: the file is empty"}},
		{"a file of a byte-order mark is refused", []string{"JWT_SECRET_KEY_FILE=" + onlyMark}, []string{"JWT_SECRET_KEY_FILE: the file is empty"}},
		{"a byte-order mark is not part of the key", []string{"ADDR=0.0.0.0:0", "JWT_SECRET_KEY_FILE=" + marked}, []string{"JWT_SECRET_KEY_FILE", "31 bytes"}},
		{"a missing file is refused", []string{"JWT_SECRET_KEY_FILE=" + filepath.Join(dir, "none")}, []string{"JWT_SECRET_KEY_FILE: must name a readable file: no such file"}},
		{"a directory is refused", []string{"JWT_SECRET_KEY_FILE=" + dir}, []string{"JWT_SECRET_KEY_FILE: must name a readable file: is a directory"}},
		{"the tutorial's key is refused on every address", []string{"ADDR=0.0.0.0:0", "JWT_SECRET_KEY=your-secret-key"}, []string{"JWT_SECRET_KEY", "tutorial"}},
		{"a short key is refused on every address", []string{"ADDR=0.0.0.0:0", "JWT_SECRET_KEY=short-secret"}, []string{"JWT_SECRET_KEY", "12 bytes", "32"}},
		{"a key one byte too short is refused on every address", []string{"ADDR=0.0.0.0:0", "JWT_SECRET_KEY=" + long[1:]}, []string{"JWT_SECRET_KEY", "31 bytes", "32"}},
		{"a short previous key in a file is refused on every address", []string{"ADDR=0.0.0.0:0", "JWT_SECRET_KEY=" + long, "JWT_SECRET_KEY_PREVIOUS_FILE=" + short}, []string{"JWT_SECRET_KEY_PREVIOUS_FILE", "12 bytes", "32"}},
		{"a previous key in a file without a key is refused", []string{"JWT_SECRET_KEY_PREVIOUS_FILE=" + good}, []string{"JWT_SECRET_KEY_PREVIOUS_FILE", "without JWT_SECRET_KEY"}},
		{"a short key in a file is refused on every address", []string{"ADDR=0.0.0.0:0", "JWT_SECRET_KEY_FILE=" + short}, []string{"JWT_SECRET_KEY_FILE", "12 bytes", "32"}},
	} {
		t.Run(c.claim, func(t *testing.T) {
			got := userdHere(t, "", c.environ)
			got.wantFailure(t, 2, c.words...)
			if strings.Contains(got.stderr, "short-secret") {
				t.Errorf("standard error holds the key: %s", got.stderr)
			}
		})
	}
	wantFiles(t, dir, "empty", "newlines", "good", "short", "marked", "mark")

	for _, c := range []struct {
		claim   string
		environ []string
		from    string
		warning string
	}{
		{"the tutorial's key is warned about on a loopback address", []string{"JWT_SECRET_KEY=your-secret-key"}, "JWT_SECRET_KEY", "tutorial"},
		{"a short key is warned about on a loopback address", []string{"JWT_SECRET_KEY=short-secret"}, "JWT_SECRET_KEY", "12 bytes"},
		{"a short key in a file is warned about on a loopback address", []string{"JWT_SECRET_KEY_FILE=" + short}, "JWT_SECRET_KEY_FILE", "12 bytes"},
		{"a long key is fine", []string{"JWT_SECRET_KEY=" + long}, "JWT_SECRET_KEY", ""},
		{"a long key is fine on every address", []string{"ADDR=0.0.0.0:0", "JWT_SECRET_KEY=" + long}, "JWT_SECRET_KEY", ""},
		{"a long key in a file is fine on every address", []string{"ADDR=0.0.0.0:0", "JWT_SECRET_KEY_FILE=" + good}, "JWT_SECRET_KEY_FILE", ""},
		{"no key is fine on every address", []string{"ADDR=0.0.0.0:0"}, "kept in the database", ""},
	} {
		t.Run(c.claim, func(t *testing.T) {
			got := userdHere(t, "", append([]string{"ADDR=127.0.0.1:0", "DATABASE_URL=" + filepath.Join(t.TempDir(), "app.db")}, c.environ...))
			if got.status != 0 || !strings.Contains(got.stderr, fmt.Sprintf(`"signing_key":%q`, c.from)) {
				t.Errorf("got %+v", got)
			}
			for _, secret := range []string{"short-secret", "your-secret-key", long} {
				if strings.Contains(got.stderr, secret) {
					t.Errorf("the log holds the key: %s", got.stderr)
				}
			}
			warned := false
			for line := range strings.Lines(got.stderr) {
				if strings.Contains(line, `"level":"WARN"`) {
					warned = true
					if c.warning == "" || !strings.Contains(line, c.warning) || !strings.Contains(line, fmt.Sprintf(`"setting":%q`, c.from)) {
						t.Errorf("warned: %s", line)
					}
				}
			}
			if warned != (c.warning != "") {
				t.Errorf("it warned: %t:\n%s", warned, got.stderr)
			}
		})
	}
}

// exampleSettings returns the lines of the example of an environment file that set something
// after their # is removed, by name.
func exampleSettings(t *testing.T) (text string, lines map[string]string) {
	t.Helper()
	text, lines = help(t, "help", "-env"), make(map[string]string)
	for _, m := range regexp.MustCompile(`(?m)^#(([A-Z_]+)=.*)$`).FindAllStringSubmatch(text, -1) {
		lines[m[2]] = m[1]
	}
	return text, lines
}

func TestTheExampleOfAnEnvironmentFileHasTheDefaults(t *testing.T) {
	t.Parallel()
	text, lines := exampleSettings(t)
	if line := regexp.MustCompile(`(?m)^[^#\n].*`).FindString(text); line != "" {
		t.Errorf("a line is not disabled: %s", line)
	}
	for _, line := range lines {
		// systemd, Docker and sh read only such lines alike.
		if !regexp.MustCompile(`^[A-Z_]+=[a-z0-9:/.-]*$`).MatchString(line) {
			t.Errorf("%s: the value requires quotes", line)
		}
	}
	want, err := configured(nil, getenvOf(nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, without := range []string{"", "ADDR"} { // without ADDR, HOST and PORT make the address
		delete(lines, without)
		got, err := configured(nil, getenvOf(slices.Collect(maps.Values(lines))))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("with all lines but %q: %+v, %v\nwant %+v", without, got, err, want)
		}
	}
}

func TestAShellReadsTheExampleOfAnEnvironmentFile(t *testing.T) {
	t.Parallel()
	text, lines := exampleSettings(t)
	for name, c := range map[string]struct {
		text string
		want int
	}{
		"as it is":           {text, 0},
		"with all its lines": {regexp.MustCompile(`(?m)^#([A-Z_]+=)`).ReplaceAllString(text, "$1"), len(lines)},
	} {
		file := filepath.Join(t.TempDir(), "userd.env")
		writeFile(t, file, []byte(c.text))
		cmd := exec.Command("sh", "-eac", `. "$0"; env`, file)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
		out, err := cmd.CombinedOutput()
		set := 0
		for line := range strings.Lines(string(out)) {
			line = strings.TrimSpace(line)
			if name, _, _ := strings.Cut(line, "="); lines[name] == line {
				set++
			}
		}
		if err != nil || set != c.want {
			t.Errorf("%s: sh reads %d settings, want %d: %v, %s", name, set, c.want, err, out)
		}
	}
}

// docs/configuration.md lists the same variables as the example.
func TestTheDocumentationListsEachSetting(t *testing.T) {
	t.Parallel()
	_, lines := exampleSettings(t)
	var listed []string
	for _, row := range regexp.MustCompile(`(?m)^\| (`+"`"+`[A-Z].*?) \|`).FindAllStringSubmatch(documentation(t)["docs/configuration.md"], -1) {
		listed = append(listed, regexp.MustCompile(`[A-Z_]+`).FindAllString(row[1], -1)...)
	}
	slices.Sort(listed)
	if want := slices.Sorted(maps.Keys(lines)); !slices.Equal(listed, want) {
		t.Errorf("the page lists %v\nthe example has %v", listed, want)
	}
}

func TestEachSecretCanBeInAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// JWT_SECRET_KEY_PREVIOUS requires the other key.
	value := func(env string) string {
		if strings.HasPrefix(env, "DATA_KEY") {
			return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte(env[len(env)-1:]), 32))
		}
		return env + " " + strings.Repeat("k", 32)
	}
	for _, x := range secrets {
		file := filepath.Join(dir, x.env)
		if err := os.WriteFile(file, []byte(setting.ByteOrderMark+value(x.env)+"\r\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		var others []string
		for _, other := range secrets {
			if other.env != x.env {
				others = append(others, other.env+"="+value(other.env))
			}
		}
		want, err := configured(nil, getenvOf(append(others, x.env+"="+value(x.env))))
		if err != nil {
			t.Fatal(err)
		}
		got, err := configured(nil, getenvOf(append(others, x.env+"_FILE="+file)))
		if err != nil {
			t.Fatal(err)
		}
		if string(got.secret) != string(want.secret) || string(got.previousSecret) != string(want.previousSecret) {
			t.Errorf("%s_FILE gives the keys %q and %q", x.env, got.secret, got.previousSecret)
		}
		if !reflect.DeepEqual(got.dataKeys, want.dataKeys) {
			t.Errorf("%s_FILE gives other data keys", x.env)
		}
		for _, environ := range [][]string{
			{x.env + "_FILE=" + file, x.env + "=" + value(x.env)},
			{x.env + "_FILE=" + filepath.Join(dir, "none")},
		} {
			userdHere(t, "", append(others, environ...)).wantFailure(t, 2, x.env+"_FILE")
		}
	}
}

func TestTheDatabaseIsWhereItsURLSays(t *testing.T) {
	elsewhere := t.TempDir()
	for _, c := range []struct {
		claim, url string
		path       string // from the working directory
	}{
		{"three slashes and a relative path", "sqlite:///rel.db", "rel.db"},
		{"three slashes and a path into a directory", "sqlite:///sub/rel.db", "sub/rel.db"},
		{"four slashes and an absolute path", "sqlite:///" + elsewhere + "/abs.db", elsewhere + "/abs.db"},
		{"a relative path", "plain.db", "plain.db"},
		{"a relative path that leaves the directory", "sub/../up.db", "up.db"},
		{"an absolute path", elsewhere + "/plain.db", elsewhere + "/plain.db"},
		{"a path with a space", "with a space.db", "with a space.db"},
		{"a path with a question mark", "what?mode=memory.db", "what?mode=memory.db"},
		{"a path with a hash", "with#hash.db", "with#hash.db"},
		{"a path with a percent sign", "with%20percent%zz.db", "with%20percent%zz.db"},
		{"a path with a colon", "./file:name.db", "file:name.db"},
		{"a URL with a space", "sqlite:///url with space.db", "url with space.db"},
		{"a URL with a hash and a percent sign, which SQLAlchemy leaves as they are", "sqlite:///url#a%20b.db", "url#a%20b.db"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			dir := t.TempDir()
			t.Chdir(dir)
			if err := os.Mkdir("sub", 0o700); err != nil {
				t.Fatal(err)
			}
			got := userdHere(t, goodPassword+"\n", []string{"DATABASE_URL=" + c.url}, "user", "add", "ann", "ann@example.com")
			path, err := filepath.Abs(c.path)
			if err != nil {
				t.Fatal(err)
			}
			if want := (result{0, "added member ann, id 1\n", "created the database " + path + "\n"}); got != want {
				t.Fatalf("got %+v, want %+v", got, want)
			}
			if names := usernames(t, openTestStore(t, path)); !slices.Equal(names, []string{"ann"}) {
				t.Errorf("the users there are %v", names)
			}
		})
	}
}

// configured returns the configuration that the arguments and the environment make.
func configured(args []string, getenv func(string) string) (config, error) {
	var c cli
	_, _, err := c.parse(args, getenv)
	return c.config, err
}

func TestUserdAcceptsItsOwnAudience(t *testing.T) {
	t.Parallel()
	for _, environ := range [][]string{
		{"JWT_DECODE_AUDIENCE=a"},
		{"JWT_ENCODE_AUDIENCE=a", "JWT_DECODE_AUDIENCE=b"},
	} {
		_, err := configured(nil, getenvOf(environ))
		if _, usage := errors.AsType[*usageError](err); !usage || !strings.Contains(fmt.Sprint(err), "JWT_DECODE_AUDIENCE") {
			t.Errorf("%v: %v", environ, err)
		}
	}
}

func TestALinkOpensThePageOfItsSetting(t *testing.T) {
	t.Parallel()
	const base, other = "https://id.example.com/users", "https://app.example.com/?c={code}"
	builtIn := pageURLs{base + "/reset#{code}", base + "/invite#{code}", base + "/verify#{code}", base + "/change#{code}", base + "/undo#{code}"}
	for setting, replace := range map[string]func(*pageURLs){
		"RESET_URL":  func(p *pageURLs) { p.reset = other },
		"INVITE_URL": func(p *pageURLs) { p.invite = other },
		"VERIFY_URL": func(p *pageURLs) { p.verify = other },
	} {
		c, err := configured(nil, getenvOf([]string{"APP_URL=" + base, setting + "=" + other}))
		if err != nil {
			t.Fatal(err)
		}
		c.setPages(false, "")
		want := builtIn
		if replace(&want); c.pages != want {
			t.Errorf("%s: got %+v, want %+v", setting, c.pages, want)
		}
	}
}

func TestWhatIsDevelopment(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		address   string
		activated bool
		environ   []string
		want      bool
	}{
		{"a loopback address", "127.0.0.1:5000", false, nil, true},
		{"a loopback address of IPv6", "[::1]:5000", false, nil, true},
		{"another address", "192.0.2.1:5000", false, nil, false},
		{"all addresses", "[::]:5000", false, nil, false},
		{"a socket of systemd", "127.0.0.1:5000", true, nil, false},
		{"a proxy", "127.0.0.1:5000", false, []string{"TRUSTED_PROXIES=127.0.0.1"}, false},
		{"ACME", "127.0.0.1:5000", false, []string{"HTTPS_DOMAIN=example.com"}, false},
		{"a public address", "127.0.0.1:5000", false, []string{"APP_URL=https://id.example.com"}, false},
		{"a certificate", "127.0.0.1:5000", false, []string{"TLS_CERT=config.go", "TLS_KEY=config.go"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf, err := configured(nil, getenvOf(c.environ))
			if err != nil {
				t.Fatal(err)
			}
			address := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.address))
			if got := conf.isDevelopment(address, c.activated); got != c.want {
				t.Errorf("got %t, want %t", got, c.want)
			}
		})
	}
}

func TestThePasswordPolicyCanBeSet(t *testing.T) {
	t.Parallel()
	s := newService(t, func(c *settings) {
		c.passwords = validate.Policy{Minimum: 15, Issuer: "https://accounts.example.com"}
	})
	for password, why := range map[string]string{
		"only 14 chars.":               "at least 15 characters",
		"accounts-example-com-https-1": "", // compared as a whole, with its letters in order
		"https://accounts.example.com": "must not be the username",
		"HTTPS accounts example com 1": "must not be the username",
		"with 15 letters":              "",
	} {
		body := fmt.Sprintf(`{"username":"u%d","email":"u%[1]d@example.com","password":%q}`, len(password)*100+len(why), password)
		r := s.do("", "POST", "/api/register", body)
		if want := 201; why == "" && r.status != want || why != "" && (r.status != 400 || !strings.Contains(r.body, why)) {
			t.Errorf("%q: %d %s, want %q", password, r.status, r.body, why)
		}
	}
}

// A command that sets passwords reads the policy, like the server.
func TestCommandsReadThePasswordPolicy(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	environ := []string{"DATABASE_URL=" + filepath.Join(dir, "app.db"), "PASSWORD_MIN_LENGTH=15"}
	rows := filepath.Join(dir, "users.csv")
	if err := os.WriteFile(rows, []byte("username,email,password\nbob,bob@example.com,only 14 chars.\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := userdHere(t, "with 15 letters", environ, "user", "add", "ann", "ann@example.com"); r.status != 0 {
		t.Fatal(r)
	}
	for _, args := range [][]string{{"user", "add", "eve", "eve@example.com"}, {"user", "passwd", "ann"}, {"user", "import", rows}} {
		r := userdHere(t, "only 14 chars.", environ, args...)
		if r.status != 1 || !strings.Contains(r.stderr, "at least 15 characters") {
			t.Errorf("%v: %+v", args, r)
		}
		if r = userdHere(t, "only 14 chars.", environ, append(args, "-password-min-length", "14")...); r.status != 0 {
			t.Errorf("%v with the flag: %+v", args, r)
		}
	}
	if r := userdHere(t, "acme-2026-ACCOUNTS", environ, "user", "passwd", "-issuer", "acme.accounts", "ann"); r.status != 1 {
		t.Errorf("the issuer's name as a password: %+v", r)
	}
}
