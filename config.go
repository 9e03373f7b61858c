package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/acme/autocert"

	"userd/internal/mail"
	"userd/internal/seal"
	"userd/internal/setting"
	"userd/internal/terminal"
	"userd/internal/validate"
)

// settings are the part of the configuration that concerns requests.
type settings struct {
	accessTTL      time.Duration
	refreshTTL     time.Duration
	sessionLife    time.Duration // 0: no limit
	registration   registrationMode
	emailDomains   []string // that may register without an invitation; nil: any
	pages          pageURLs
	directory      directory
	trustedProxies []netip.Prefix
	corsOrigins    []string
	rateLimit      switchSetting // off: for load tests
	mailOn         bool          // links and notices are mailed
	notices        switchSetting
	mailsPerHour   int // see mailLimit
	passwords      validate.Policy
	requireFactor  requireFactor
	dataKeys       dataKeys
	console        consoleSettings
	tokenNames
}

// consoleSettings concern the console and its cookie.
type consoleSettings struct {
	on         bool
	secure     bool   // browsers send the cookie only over HTTPS
	origin     string // of APP_URL; empty: it is not set
	firstAdmin string // the command line that makes the first admin
}

// dataKeys are the keys of the configuration that encrypt secrets in the database.
type dataKeys struct{ current, previous []byte } // of seal.KeySize bytes; nil: not set

// tokenNames are the names in access tokens, for other services that verify them.
type tokenNames struct {
	issuer   string   // the claim iss, also required; empty: none
	audience []string // the claim aud; nil: none
	accepted []string // a token must be for one of these; nil: none is required
}

// members returns the claims aud and iss as members of a JSON object, each with a comma
// after it. No name needs an escape (setting.Name).
func (n *tokenNames) members() (text string) {
	switch len(n.audience) {
	case 0:
	case 1:
		text = `"aud":"` + n.audience[0] + `",`
	default:
		text = `"aud":["` + strings.Join(n.audience, `","`) + `"],`
	}
	if n.issuer != "" {
		text += `"iss":"` + n.issuer + `",`
	}
	return text
}

// accept reports whether a token with these names is from and for userd.
func (n *tokenNames) accept(token *tokenNames) bool {
	accepted := func(name string) bool { return slices.Contains(n.accepted, name) }
	return (n.issuer == "" || n.issuer == token.issuer) && (len(n.accepted) == 0 || slices.ContainsFunc(token.audience, accepted))
}

// A registrationMode says who can register.
type registrationMode string

const (
	registrationOpen     registrationMode = "open"     // anyone
	registrationVerified registrationMode = "verified" // anyone, by a mailed link
	registrationInvite   registrationMode = "invite"   // only invited users
	registrationApproval registrationMode = "approval" // anyone, but an admin must approve the user
	registrationClosed   registrationMode = "closed"   // only invited users, too; the error does not mention invitations
)

// requireFactor says which users must have a second factor.
type requireFactor string

const (
	requireFactorOff    requireFactor = "off"
	requireFactorAdmins requireFactor = "admins"
	requireFactorAll    requireFactor = "all"
)

// concerns reports whether a user must have a second factor.
func (r requireFactor) concerns(isAdmin bool) bool {
	return r == requireFactorAll || r == requireFactorAdmins && isAdmin
}

// pageURLs are the pages that links open, with {code} in place of the code. If a page is
// empty, userd makes no links to it.
type pageURLs struct{ reset, invite, verify, change, undo string }

// setPages sets each page without a setting of its own to the built-in page below APP_URL.
// If APP_URL is not set, setPages uses url, the server's address, but only in development: on
// other servers, clients may be unable to reach this address.
func (c *config) setPages(development bool, url string) {
	base := c.appURL
	if base == "" && development {
		base = url
	}
	if base != "" {
		c.pages.reset = cmp.Or(c.pages.reset, base+"/reset#{code}")
		c.pages.invite = cmp.Or(c.pages.invite, base+"/invite#{code}")
		c.pages.verify = cmp.Or(c.pages.verify, base+"/verify#{code}")
		c.pages.change = base + "/change#{code}"
		c.pages.undo = base + "/undo#{code}"
	}
}

// directory says what a member sees of other users.
type directory string

const (
	directoryFull  directory = "full"  // id, username, email
	directoryNames directory = "names" // id, username
	directorySelf  directory = "self"  // nothing
)

// A switchSetting is the value of a setting that is on or off.
type switchSetting string

const (
	switchOn  switchSetting = "on"
	switchOff switchSetting = "off"
)

// A config is the configuration of one run.
type config struct {
	settings
	database       string // an absolute path
	addr           string
	consoleSwitch  switchSetting // empty: on in development only
	appURL         string        // without a slash at its end; empty: not set
	domains        []string      // of HTTPS_DOMAIN, in lower case
	acmeDirectory  string
	tlsCert        string        // a file; set if and only if tlsKey is
	tlsKey         string        // a file
	metricsAddr    string        // empty: none
	secret         []byte        // of JWT_SECRET_KEY; empty: the database keeps the key
	previousSecret []byte        // of JWT_SECRET_KEY_PREVIOUS: its tokens are still valid
	mailURL        string        // empty: mail is off
	webhookSecret  string        // of MAIL_WEBHOOK_SECRET
	mailTemplates  string        // a directory; empty: the built-in texts
	sender         mail.Sender   // of MAIL_FROM; zero: not set
	secretFrom     string        // where the signing key comes from, for the log
	previousFrom   string        // the variable that gave previousSecret
	eventRetention time.Duration // 0: events are kept forever
	logFormat      string        // empty: text on a terminal, otherwise json
	logLevel       slog.Level
}

// An option is a setting with a flag and an environment variable.
type option struct {
	env, flag string
	value     string // the placeholder of its value in the help
	standard  string // the default
	set       func(c *config, value string) error
	help      string // sentences
}

var options = []option{
	{"DATABASE_URL", "database", "URL", "sqlite:///app.db", func(c *config, v string) error { return setting.SQLitePath(&c.database, v) },
		"The database: sqlite:///relative.db, sqlite:////absolute.db or a path. The server, user add and user import create it if it does not exist."},
	// Before ADDR, whose default depends on it.
	{"HTTPS_DOMAIN", "https-domain", "NAME,...", "", func(c *config, v string) error { return setting.Domains(&c.domains, v) },
		"Serve HTTPS for these names, with certificates that userd gets and renews by ACME. Port 80 of the same host redirects to HTTPS. By setting it you accept the terms of the certificate authority."},
	{"ADDR", "addr", "HOST:PORT", "127.0.0.1:5000", func(c *config, v string) error { return setting.HostPort(&c.addr, v) },
		"The address to listen on. With HTTPS_DOMAIN the default is :443."},
	{"METRICS_ADDR", "metrics-addr", "HOST:PORT", "", func(c *config, v string) error {
		if v == "" {
			return nil
		}
		return setting.HostPort(&c.metricsAddr, v)
	},
		"A second address, such as 127.0.0.1:9090, that answers only /metrics, /healthz and /readyz. It requires no token, so keep it private. On the main address, /metrics requires an admin's token."},
	{"ACME_DIRECTORY", "acme-directory", "URL", autocert.DefaultACMEDirectory, func(c *config, v string) error { return setting.HTTPS(&c.acmeDirectory, v) },
		"The directory of the ACME server."},
	{"TLS_CERT", "tls-cert", "FILE", "", func(c *config, v string) error { return setting.File(&c.tlsCert, v) },
		"Serve HTTPS with this certificate and the intermediate ones after it, in PEM. userd reads the file again when it changes."},
	{"TLS_KEY", "tls-key", "FILE", "", func(c *config, v string) error { return setting.File(&c.tlsKey, v) },
		"The private key of TLS_CERT, in PEM."},
	{"JWT_ACCESS_TOKEN_EXPIRES", "access-ttl", "TIME", "15m", func(c *config, v string) error { return setting.TTL(&c.accessTTL, v, time.Second, maxAccessTTL) },
		"How long an access token is valid: a duration such as 15m, or seconds; at most 24h."},
	{"JWT_REFRESH_TOKEN_EXPIRES", "refresh-ttl", "TIME", "720h", func(c *config, v string) error { return setting.TTL(&c.refreshTTL, v, time.Second, setting.TenYears) },
		"How long a session lasts after its last refresh: a duration, or seconds."},
	{"SESSION_LIFETIME", "session-lifetime", "TIME", "4320h", func(c *config, v string) error { return setting.TTLOrZero(&c.sessionLife, v) },
		"The longest that a session can live, however often it is refreshed: a duration, or seconds; 0 sets no limit. 4320h are 180 days."},
	{"JWT_ENCODE_ISSUER", "issuer", "NAME", "", func(c *config, v string) error { return setting.Name(&c.issuer, v) },
		"The issuer (iss) that userd writes into access tokens and requires of them. A password must not equal it."},
	{"JWT_ENCODE_AUDIENCE", "audience", "NAME,...", "", func(c *config, v string) error { return setting.Names(&c.audience, v) },
		"The audience (aud) that userd writes into access tokens."},
	{"JWT_DECODE_AUDIENCE", "accept-audience", "NAME,...", "", func(c *config, v string) error { return setting.Names(&c.accepted, v) },
		"userd requires that an access token is for one of these. The default is JWT_ENCODE_AUDIENCE."},
	{"PASSWORD_MIN_LENGTH", "password-min-length", "N", "8", func(c *config, v string) error {
		return setting.Number(&c.passwords.Minimum, v, validate.MinPassword, validate.MaxMinPassword)
	},
		"The fewest characters of a new password, from 8 to 64. NIST SP 800-63B-4 requires 15 if the password is the only factor."},
	{"REQUIRE_FACTOR", "require-factor", "off|admins|all", string(requireFactorOff),
		func(c *config, v string) error {
			return setting.Word(&c.requireFactor, v, requireFactorOff, requireFactorAdmins, requireFactorAll)
		},
		"Who must have a second factor: with off, no user; with admins, every admin; with all, every user. Without it, such a user can only add one."},
	{"REGISTRATION", "registration", "MODE", string(registrationOpen),
		func(c *config, v string) error {
			return setting.Word(&c.registration, v, registrationOpen, registrationVerified, registrationInvite, registrationApproval, registrationClosed)
		},
		"Who can register: with open, everyone; with verified, everyone who opens a link that userd mails to the address; with invite or closed, only users that an admin invites; with approval, everyone, but the user cannot log in until an admin approves it."},
	{"EMAIL_DOMAINS", "email-domains", "NAME,...", "", func(c *config, v string) error { return setting.EmailDomains(&c.emailDomains, v) },
		"The only domains whose e-mail addresses can register without an invitation, such as example.com. A domain with a dot before it, such as .example.com, means all domains below it, but not itself."},
	{"APP_URL", "app-url", "URL", "", func(c *config, v string) error { return setting.PublicURL(&c.appURL, v) },
		"The address of userd that clients use, such as https://id.example.com, for the links that admins make or userd mails. In development, the default is the address to listen on. Otherwise no link can be made without it."},
	{"CONSOLE", "console", "on|off", "",
		func(c *config, v string) error { return setting.Word(&c.consoleSwitch, v, "", switchOn, switchOff) },
		"Whether userd serves the console, a page for admins and users, at /console. Default: on in development, otherwise off. It needs HTTPS and APP_URL, or a loopback address."},
	{"RESET_URL", "reset-url", "URL", "", func(c *config, v string) error { return setting.PageURL(&c.pages.reset, v) },
		"The page of an application that sets a new password, with {code} in place of the code: https://app.example.com/reset#{code}. The default is the built-in page below APP_URL."},
	{"INVITE_URL", "invite-url", "URL", "", func(c *config, v string) error { return setting.PageURL(&c.pages.invite, v) },
		"The page of an application on which an invited user registers, with {code} in place of the code. The default is the built-in page below APP_URL."},
	{"VERIFY_URL", "verify-url", "URL", "", func(c *config, v string) error { return setting.PageURL(&c.pages.verify, v) },
		"The page of an application that verifies an e-mail address, with {code} in place of the code. The default is the built-in page below APP_URL."},
	{"MAIL_FROM", "mail-from", "ADDRESS", "", func(c *config, v string) (err error) {
		if v != "" {
			c.sender, err = mail.ParseSender(v)
		}
		return err
	},
		"The sender of mails, such as no-reply@example.com or Example <no-reply@example.com>. SMTP requires it."},
	{"MAIL_TEMPLATES", "mail-templates", "DIR", "", func(c *config, v string) error { return setting.Dir(&c.mailTemplates, v) },
		"A directory with texts that replace the built-in ones: DIR/KIND.txt for each kind of mail, such as reset.txt; see docs/mail.md."},
	{"MAIL_LIMIT", "mail-limit", "N", "300", func(c *config, v string) error { return setting.Number(&c.mailsPerHour, v, 1, 100_000) },
		"How many mails strangers can cause in a row, and then in each hour, such as links for forgotten passwords. Other mails do not count."},
	{"NOTICES", "notices", "on|off", string(switchOn),
		func(c *config, v string) error { return setting.Word(&c.notices, v, switchOn, switchOff) },
		"Whether userd mails users with a verified address that their account changed, or that their password was used in a new network."},
	{"DIRECTORY", "directory", "full|names|self", string(directoryNames),
		func(c *config, v string) error {
			return setting.Word(&c.directory, v, directoryFull, directoryNames, directorySelf)
		},
		"What a member sees of other users: full (id, username and e-mail address), names (id and username) or self (nothing)."},
	{"TRUSTED_PROXIES", "trusted-proxies", "CIDR,...", "", func(c *config, v string) error { return setting.Networks(&c.trustedProxies, v) },
		"The proxies whose X-Forwarded-For and X-Request-Id userd believes."},
	{"CORS_ORIGINS", "cors-origins", "ORIGIN,...", "", func(c *config, v string) error { return setting.Origins(&c.corsOrigins, v) },
		"The origins, such as https://app.example.com, whose pages may call the API from a browser."},
	{"RATE_LIMIT", "rate-limit", "on|off", string(switchOn),
		func(c *config, v string) error { return setting.Word(&c.rateLimit, v, switchOn, switchOff) },
		"Whether userd limits failed logins and the requests of each network; off is for load tests."},
	{"EVENT_RETENTION", "event-retention", "TIME", "9600h", func(c *config, v string) error { return setting.TTLOrZero(&c.eventRetention, v) },
		"How long events are kept: a duration, or seconds; 0 keeps them forever. 9600h are 400 days."},
	{"LOG_FORMAT", "log-format", "text|json", "", func(c *config, v string) error { return setting.Word(&c.logFormat, v, "", "text", "json") },
		"The format of the log on standard error. Default: text on a terminal, otherwise json."},
	{"LOG_LEVEL", "log-level", "LEVEL", "info", func(c *config, v string) error { return setting.Level(&c.logLevel, v) },
		"The lowest level that is logged: debug, info, warn or error."},
}

// A secretSetting is a secret. It is never a flag, because every user of the machine can
// see flags. The variable env_FILE can name a file that holds it instead.
type secretSetting struct {
	env  string
	set  func(c *config, value []byte, from string) error // from is the variable that was set
	help string
}

var secrets = []secretSetting{
	{"JWT_SECRET_KEY", func(c *config, v []byte, from string) error { c.secret, c.secretFrom = v, from; return nil },
		"The key that signs access tokens, at least 32 bytes. If it is not set, userd makes a random key at its first start and keeps it in the database."},
	{"JWT_SECRET_KEY_PREVIOUS", func(c *config, v []byte, from string) error { c.previousSecret, c.previousFrom = v, from; return nil },
		"The key before this one, whose tokens are still valid."},
	{"DATA_KEY", func(c *config, v []byte, _ string) (err error) {
		c.dataKeys.current, err = seal.ParseKey(string(v))
		return err
	},
		"The key that encrypts the TOTP secrets in the database: the base64 of 32 random bytes. If it is not set, userd makes a random key and keeps it in the database."},
	{"DATA_KEY_PREVIOUS", func(c *config, v []byte, _ string) (err error) {
		c.dataKeys.previous, err = seal.ParseKey(string(v))
		return err
	},
		"The key before DATA_KEY, until \"userd key rotate -data\" has encrypted the secrets again."},
	{"MAIL_URL", func(c *config, v []byte, _ string) error { c.mailURL = string(v); return nil },
		"How mails leave: smtps://USER:PASS@HOST:465, smtp://USER:PASS@HOST:587 (with STARTTLS), smtp+plain://localhost:25, https://HOST/PATH (a webhook), dir:PATH (files), or log: (the log, in development). If it is not set, userd sends no mail."},
	{"MAIL_WEBHOOK_SECRET", func(c *config, v []byte, _ string) error { c.webhookSecret = string(v); return nil },
		"The secret that signs webhooks: whsec_ and the base64 of 24 to 64 random bytes."},
}

// variables are the other settings that only the environment can hold.
var variables = []struct {
	env      string
	standard string // the default; empty: systemd sets the variable
	help     string
}{
	{"HOST", "127.0.0.1", "The host of ADDR if ADDR is not set: an IP address or localhost. The image sets HOST=0.0.0.0."},
	{"PORT", "5000", "The port of ADDR if ADDR is not set. Platforms set it. With HTTPS_DOMAIN the default is 443."},
	{"LISTEN_PID, LISTEN_FDS", "", "A socket from systemd, which userd uses instead of ADDR."},
	{"NOTIFY_SOCKET", "", "The socket on which userd tells systemd when it is ready and when it stops."},
}

// environmentExample returns an environment file with every setting, commented out, with its
// default. No value has a character that systemd, Docker or sh interprets.
func environmentExample() string {
	text := terminal.Wrap("# ", `Settings of userd, one NAME=value a line, for systemd (EnvironmentFile=), Docker
		(--env-file) or sh (set -a; . FILE). Each # directly before a name disables a
		setting, which is printed with its default: remove the # and change the value.`)
	add := func(help string, lines ...string) {
		text += "\n" + terminal.Wrap("# ", help) + "#" + strings.Join(lines, "\n#") + "\n"
	}
	for _, o := range options {
		add(o.help, o.env+"="+o.standard)
	}
	for _, v := range variables {
		if v.standard != "" {
			add(v.help, v.env+"="+v.standard)
		}
	}
	for _, x := range secrets {
		add(x.help+" "+x.env+"_FILE names a file that holds it instead.", x.env+"=", x.env+"_FILE=")
	}
	return text
}

// load sets the settings whose flags the command accepts, in a zero config. A flag's
// value in given overrides the environment, which overrides the default. It returns
// a usageError that names the setting.
func (c *config) load(given map[string]string, getenv func(string) string, accepts func(flag string) bool) error {
	for _, o := range options {
		if !accepts(o.flag) {
			continue
		}
		value, from := o.standard, o.env
		if v, ok := given[o.flag]; ok {
			value, from = v, "-"+o.flag
		} else if v := getenv(o.env); v != "" {
			value = v
		} else if o.env == "ADDR" {
			var err error
			if value, err = c.defaultAddr(o.standard, getenv); err != nil {
				return err
			}
		}
		if err := o.set(c, value); err != nil {
			if o.value == "FILE" || o.value == "DIR" {
				return usagef("%s: %v", from, err)
			}
			return usagef("%s=%q: %v", from, setting.WithoutSecrets(value), err)
		}
	}
	c.passwords.Issuer = c.issuer
	if len(c.accepted) == 0 {
		c.accepted = c.audience
	}
	if !c.accept(&c.tokenNames) {
		return usagef("JWT_ENCODE_AUDIENCE has none of the names in JWT_DECODE_AUDIENCE, so userd would refuse its own tokens; add one of them")
	}
	if accepts("tls-key") && (c.tlsCert == "") != (c.tlsKey == "") {
		return usagef("only one of TLS_CERT and TLS_KEY (-tls-cert and -tls-key) is set; set both")
	}
	if c.tlsCert != "" && len(c.domains) > 0 {
		return usagef("HTTPS_DOMAIN and TLS_CERT are both set; set only one")
	}
	if !accepts("database") && !accepts("addr") && !accepts("mail-from") {
		return nil
	}
	return c.readSecrets(getenv)
}

// defaultAddr returns the address to listen on if ADDR is not set: the host of HOST and the
// port of PORT, whose defaults are those of standard, or port 443 for HTTPS. HOST must be an
// IP address or localhost: tcsh and conda set HOST to the name of the machine or of its
// system, and userd must not listen there.
func (c *config) defaultAddr(standard string, getenv func(string) string) (string, error) {
	host, port := getenv("HOST"), getenv("PORT")
	https := len(c.domains) > 0
	if host == "" && port == "" && https {
		return ":443", nil
	}
	standardHost, standardPort, err := net.SplitHostPort(standard)
	if err != nil {
		return "", err
	}
	if https {
		standardPort = "443"
	}
	host, port = strings.Trim(cmp.Or(host, standardHost), "[]"), cmp.Or(port, standardPort)
	if _, err := netip.ParseAddr(host); err != nil && host != "localhost" {
		return "", usagef("HOST=%q: must be an IP address such as 0.0.0.0, or localhost; userd ignores HOST if ADDR is set", setting.WithoutSecrets(host))
	}
	if err := setting.CheckPort(port); err != nil {
		return "", usagef("PORT=%q: %v", setting.WithoutSecrets(port), err)
	}
	return net.JoinHostPort(host, port), nil
}

// maxAccessTTL is the longest lifetime of an access token. Services that verify tokens
// themselves accept a token for so long after its session has ended.
const maxAccessTTL = 24 * time.Hour

// readSecrets reads the secrets that the environment holds or names.
func (c *config) readSecrets(getenv func(string) string) error {
	c.secretFrom = "kept in the database"
	for i := range secrets {
		value, from, err := setting.Secret(getenv, secrets[i].env)
		if err != nil {
			return usagef("%v", err)
		}
		if from != "" {
			if err := secrets[i].set(c, value, from); err != nil {
				return usagef("%s: %v", from, err)
			}
		}
	}
	if len(c.previousSecret) > 0 && len(c.secret) == 0 {
		return usagef("%s is set without JWT_SECRET_KEY; set both", c.previousFrom)
	}
	return nil
}

// isDevelopment reports whether only the developer can reach the server: it listens on a
// loopback address, and no setting makes that address public. activated means that systemd
// opened the socket.
func (c *config) isDevelopment(address net.Addr, activated bool) bool {
	tcp, ok := address.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback() && !activated && len(c.trustedProxies) == 0 && len(c.domains) == 0 && c.tlsCert == "" && c.appURL == ""
}

// weakSecret returns why others may know or guess a configured signing key, or "".
// A key for HS256 must have at least 256 bits (RFC 7518 section 3.2).
func weakSecret(secret []byte) string {
	switch {
	case string(secret) == "your-secret-key":
		return "this is the tutorial's published key; set a random one of at least 32 bytes"
	case len(secret) > 0 && len(secret) < 32:
		return fmt.Sprintf("the key has %d bytes and must have at least 32", len(secret))
	}
	return ""
}
