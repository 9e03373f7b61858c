package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/acme/autocert"
)

// Settings are what the configuration says of how requests are answered.
type settings struct {
	accessTTL      time.Duration
	refreshTTL     time.Duration
	registration   registration
	directory      directory
	trustedProxies []netip.Prefix
	corsOrigins    []string
	rateLimit      rateLimit
}

// registration says who makes users.
type registration string

const (
	registrationOpen   registration = "open"   // anyone
	registrationClosed registration = "closed" // admins
)

// directory says what a member sees of others.
type directory string

const (
	directoryFull  directory = "full"  // id, username, email
	directoryNames directory = "names" // id, username
	directorySelf  directory = "self"  // nothing
)

// rateLimit says whether there is a limiter.
type rateLimit string

const (
	rateLimitOn  rateLimit = "on"
	rateLimitOff rateLimit = "off" // for load tests
)

// A config is the configuration of one run.
type config struct {
	settings
	database       string // an absolute path
	addr           string
	domains        []string // of HTTPS_DOMAIN, in lower case
	acmeDirectory  string
	tlsCert        string // a file, as tlsKey is; both are given or neither
	tlsKey         string
	metricsAddr    string        // empty: none
	secret         []byte        // of JWT_SECRET_KEY; empty: the database keeps the key
	previousSecret []byte        // of JWT_SECRET_KEY_PREVIOUS: its tokens are still good
	secretFrom     string        // where the signing key is from, for people
	eventRetention time.Duration // 0: events are kept for ever
	logFormat      string        // empty: by what standard error is
	logLevel       slog.Level
}

// options are the settings that have a flag and an environment variable.
var options = []struct {
	env, flag, standard string
	set                 func(c *config, value string) error
}{
	{"DATABASE_URL", "database", "sqlite:///app.db", (*config).setDatabase},
	{"HTTPS_DOMAIN", "https-domain", "", (*config).setDomains}, // before ADDR, whose default it moves
	{"ADDR", "addr", "127.0.0.1:5000", func(c *config, v string) error { return setHostPort(&c.addr, v) }},
	{"METRICS_ADDR", "metrics-addr", "", (*config).setMetricsAddr},
	{"ACME_DIRECTORY", "acme-directory", autocert.DefaultACMEDirectory, (*config).setACMEDirectory},
	{"TLS_CERT", "tls-cert", "", func(c *config, v string) error { return setFile(&c.tlsCert, v) }},
	{"TLS_KEY", "tls-key", "", func(c *config, v string) error { return setFile(&c.tlsKey, v) }},
	{"JWT_ACCESS_TOKEN_EXPIRES", "access-ttl", "15m", func(c *config, v string) error { return setTTL(&c.accessTTL, v) }},
	{"JWT_REFRESH_TOKEN_EXPIRES", "refresh-ttl", "720h", func(c *config, v string) error { return setTTL(&c.refreshTTL, v) }},
	{"REGISTRATION", "registration", string(registrationOpen), func(c *config, v string) error {
		return setWord(&c.registration, v, registrationOpen, registrationClosed)
	}},
	{"DIRECTORY", "directory", string(directoryNames), func(c *config, v string) error {
		return setWord(&c.directory, v, directoryFull, directoryNames, directorySelf)
	}},
	{"TRUSTED_PROXIES", "trusted-proxies", "", (*config).setProxies},
	{"CORS_ORIGINS", "cors-origins", "", (*config).setOrigins},
	{"RATE_LIMIT", "rate-limit", string(rateLimitOn), func(c *config, v string) error {
		return setWord(&c.rateLimit, v, rateLimitOn, rateLimitOff)
	}},
	{"EVENT_RETENTION", "event-retention", "9600h", (*config).setRetention},
	{"LOG_FORMAT", "log-format", "", func(c *config, v string) error { return setWord(&c.logFormat, v, "", "text", "json") }},
	{"LOG_LEVEL", "log-level", "info", func(c *config, v string) error { return setLevel(&c.logLevel, v) }},
}

// setDatabase takes what SQLAlchemy takes for SQLite, or a path.
func (c *config) setDatabase(v string) error {
	path := v
	if scheme, rest, ok := strings.Cut(v, "://"); ok {
		if scheme != "sqlite" {
			return fmt.Errorf("userd keeps its data in SQLite: sqlite:///relative.db, sqlite:////absolute.db or a path")
		}
		if path, ok = strings.CutPrefix(rest, "/"); !ok {
			return errors.New("three slashes begin a relative path, four an absolute one")
		}
		if strings.Contains(path, "?") {
			return errors.New("parameters after ? are not known here")
		}
	}
	if path == "" || path == ":memory:" {
		return errors.New("the database must be a file")
	}
	var err error
	c.database, err = filepath.Abs(path)
	return err
}

func (c *config) setMetricsAddr(v string) error {
	if v == "" {
		c.metricsAddr = ""
		return nil
	}
	return setHostPort(&c.metricsAddr, v)
}

func setHostPort(to *string, v string) error {
	_, port, err := net.SplitHostPort(v)
	if err != nil {
		return errors.New("must be HOST:PORT")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("the port must be a number up to 65535")
	} else if n == 0 && port != "0" {
		return errors.New("the port must be a number")
	}
	*to = v
	return nil
}

// setDomains takes names that a certificate can be had for by ACME: ASCII, and
// no wildcards, which would take a change in the DNS.
func (c *config) setDomains(v string) error {
	c.domains = nil
	for part := range strings.SplitSeq(strings.ToLower(v), ",") {
		part = strings.TrimSpace(part)
		if part == "" || slices.Contains(c.domains, part) {
			continue
		}
		label := `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`
		good, err := regexp.MatchString(`^(`+label+`\.)+`+label+`$`, part)
		if _, notAddress := netip.ParseAddr(part); err != nil || !good || len(part) > 253 || notAddress == nil {
			return fmt.Errorf("%q is no domain name such as example.com, in ASCII (xn--…) and without *", part)
		}
		c.domains = append(c.domains, part)
	}
	return nil
}

// setACMEDirectory takes the address of a directory (RFC 8555 section 7.1.1).
func (c *config) setACMEDirectory(v string) error {
	u, err := url.Parse(v)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return errors.New("must be an address that begins with https://")
	}
	c.acmeDirectory = v
	return nil
}

// setFile takes a file that can be read, or none.
func setFile(to *string, v string) error {
	*to = ""
	if v == "" {
		return nil
	}
	if _, err := os.ReadFile(v); err != nil {
		return err
	}
	var err error
	*to, err = filepath.Abs(v)
	return err
}

// setTTL takes a Go duration or, as Flask-JWT-Extended does, seconds.
func setTTL(ttl *time.Duration, v string) error {
	d, err := time.ParseDuration(v)
	if err != nil {
		d, err = time.ParseDuration(v + "s")
	}
	if err != nil || d < time.Second || d > 10*365*24*time.Hour {
		return errors.New("must be a duration such as 15m, or seconds; from 1s to ten years")
	}
	*ttl = d
	return nil
}

func (c *config) setRetention(v string) error {
	if v == "0" {
		c.eventRetention = 0
		return nil
	}
	if err := setTTL(&c.eventRetention, v); err != nil {
		return errors.New("must be a duration such as 9600h, or seconds; from 1s to ten years, or 0 for ever")
	}
	return nil
}

func (c *config) setProxies(v string) error {
	c.trustedProxies = nil
	for part := range strings.SplitSeq(v, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(part)
		if address, aerr := netip.ParseAddr(part); aerr == nil {
			prefix, err = address.Prefix(address.BitLen())
		}
		if err != nil {
			return fmt.Errorf("%q is neither an address nor a CIDR such as 10.0.0.0/8", part)
		}
		if a := prefix.Addr(); a.Is4In6() && prefix.Bits() >= 96 { // addresses are compared as IPv4
			prefix = netip.PrefixFrom(a.Unmap(), prefix.Bits()-96)
		}
		c.trustedProxies = append(c.trustedProxies, prefix.Masked())
	}
	return nil
}

// setOrigins takes origins as a browser writes them (RFC 6454 section 6.2), so
// that they can be compared as they are.
func (c *config) setOrigins(v string) error {
	c.corsOrigins = nil
	for part := range strings.SplitSeq(v, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		u, err := url.Parse(part)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || strings.ContainsRune(part, '*') ||
			part != strings.ToLower(u.Scheme+"://"+u.Host) ||
			u.Scheme == "https" && u.Port() == "443" || u.Scheme == "http" && u.Port() == "80" || strings.HasSuffix(part, ":") {
			return fmt.Errorf("%q is no origin such as https://app.example.com, in lower case and without a path", part)
		}
		c.corsOrigins = append(c.corsOrigins, part)
	}
	return nil
}

// setWord sets one of a few words.
func setWord[T ~string](to *T, v string, words ...T) error {
	var list []string
	for _, w := range words {
		if T(v) == w {
			*to = w
			return nil
		}
		if w != "" {
			list = append(list, string(w))
		}
	}
	return fmt.Errorf("must be %s", strings.Join(list, " or "))
}

func setLevel(to *slog.Level, v string) error {
	words := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	level, ok := words[v]
	if !ok {
		return errors.New("must be debug, info, warn or error")
	}
	*to = level
	return nil
}

// readKey takes a key from the environment or from a file, which may end in a
// line break. Never from a flag: flags are seen by every user of the machine.
func readKey(getenv func(string) string, name string) (key []byte, from string, err error) {
	secret, file := getenv(name), getenv(name+"_FILE")
	switch {
	case secret != "" && file != "":
		return nil, "", usagef("%s and %[1]s_FILE are both set: which one is meant?", name)
	case secret != "":
		return []byte(secret), name, nil
	case file == "":
		return nil, "kept in the database", nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, "", usagef("%s_FILE: %v", name, err)
	}
	key = []byte(strings.TrimRight(string(data), "\r\n"))
	if len(key) == 0 {
		return nil, "", usagef("%s_FILE: %s is empty", name, file)
	}
	return key, name + "_FILE", nil
}

// readSecrets reads the keys that the environment holds.
func (c *config) readSecrets(getenv func(string) string) (err error) {
	if c.secret, c.secretFrom, err = readKey(getenv, "JWT_SECRET_KEY"); err != nil {
		return err
	}
	if previous := getenv("JWT_SECRET_KEY_PREVIOUS"); previous != "" {
		c.previousSecret = []byte(previous)
		if len(c.secret) == 0 {
			return usagef("JWT_SECRET_KEY_PREVIOUS is set without JWT_SECRET_KEY: which key signs?")
		}
	}
	return nil
}

// weakSecret says why others may know or guess a configured signing key, or
// nothing. RFC 7518 section 3.2: a key for HS256 has at least 256 bits.
func weakSecret(secret []byte) string {
	switch {
	case string(secret) == "your-secret-key":
		return "this is the tutorial's published key"
	case len(secret) > 0 && len(secret) < 32:
		return fmt.Sprintf("the key has %d bytes and must have at least 32", len(secret))
	}
	return ""
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && !strings.Contains(v, s.Value[:min(12, len(s.Value))]) {
			v += " " + s.Value
		}
	}
	return v + " " + info.GoVersion
}
