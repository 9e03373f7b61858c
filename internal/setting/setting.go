// Package setting parses the values of settings: texts that an operator writes into the
// environment, into a flag or into the query of a URL.
//
// Most functions check a text and store its value in their first argument, or return an error
// and leave that argument in an undefined state. The error is a predicate about the value,
// such as "must be HOST:PORT"; the caller puts the name of the setting before it. A list is a
// text with commas between its elements. Its functions append to their first argument; they
// drop empty elements, and the white space around others.
//
// Errors can end up in a log that other people read, so they repeat no possible secret:
// an error about a list gives the number of the element. If the caller also prints a value,
// it prints the result of [WithoutSecrets]. If the setting names a file, it prints no value
// ([FileError]), because the operator may have set the secret itself.
package setting

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// FileError returns why a file could not be read, without the name of the file.
func FileError(err error) error { return fmt.Errorf("must name a readable file: %w", withoutPath(err)) }

func withoutPath(err error) error {
	if failed, ok := errors.AsType[*fs.PathError](err); ok {
		return failed.Err
	}
	return err
}

// urlScheme matches the scheme of a URL, even after a quote or a space. It does not match
// a single letter, which is a Windows drive.
var urlScheme = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]+:|[^:/]*://)`)

// connectionString matches text that is neither a path nor a URL and may hold a password,
// such as "host=db password=x".
var connectionString = regexp.MustCompile(`(?i)^//[^/]*@|\b(password|passwd|pwd)\s*=|[\r\n]`)

// isURL reports whether a value begins like a URL, or looks like the connection string of a
// database, and so is not a path.
func isURL(v string) bool { return urlScheme.MatchString(v) || connectionString.MatchString(v) }

// WithoutSecrets returns a value without the parts that can hold a password: the user info
// and the query of a URL. If it cannot find these parts, it returns only the scheme.
func WithoutSecrets(v string) string {
	scheme := urlScheme.FindString(v)
	if !strings.ContainsAny(v, "@?#;=\r\n") && !strings.Contains(v, "://") {
		return v
	}
	u, err := url.Parse(v)
	switch {
	case scheme == "" || err != nil || strings.ContainsAny(u.Opaque+u.Path+u.RawQuery+u.Fragment, "@;\r\n"): // perhaps a password with / ? or #
		return scheme + "…"
	case u.Opaque == "":
		return scheme + "//" + u.Host + u.Path
	case scheme == "sqlite:" || scheme == "file:":
		return scheme + u.Opaque
	}
	return scheme + "…"
}

// ByteOrderMark is the mark with which many Windows programs begin UTF-8 text. A program
// should drop it from every text that it reads from a file or from standard input.
const ByteOrderMark = "\ufeff"

// Secret returns the value of the variable env or, if it is not set, the contents of the file
// that the variable env_FILE names, without a line break at its end. from is the variable that
// was set, or "" if none was. The error names a variable.
func Secret(getenv func(string) string, env string) (secret []byte, from string, err error) {
	value, fileSetting := getenv(env), env+"_FILE"
	file := getenv(fileSetting)
	switch {
	case value != "" && file != "":
		return nil, "", fmt.Errorf("%s and %s are both set; set only one", env, fileSetting)
	case value != "":
		return []byte(value), env, nil
	case file == "":
		return nil, "", nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", fileSetting, FileError(err))
	}
	secret = []byte(strings.TrimRight(strings.TrimPrefix(string(data), ByteOrderMark), "\r\n"))
	if len(secret) == 0 {
		return nil, "", fmt.Errorf("%s: the file is empty", fileSetting)
	}
	return secret, fileSetting, nil
}

// SQLitePath accepts a path, or a URL as SQLAlchemy accepts it for SQLite, and makes the path
// absolute. It refuses a path that begins like another URL: "file:app.db" would become the
// name of a file.
func SQLitePath(to *string, v string) (err error) {
	path := v
	if isURL(v) {
		rest, ok := strings.CutPrefix(v, "sqlite://")
		if !ok {
			return errors.New("must be in SQLite: sqlite:///relative.db, sqlite:////absolute.db or a path; if this is a path, begin it with ./")
		}
		if path, ok = strings.CutPrefix(rest, "/"); !ok {
			return errors.New("use sqlite:///PATH for a relative path, sqlite:////PATH for an absolute one")
		}
		if strings.Contains(path, "?") {
			return errors.New("must have no parameters after ?")
		}
	}
	if path == "" || path == ":memory:" {
		return errors.New("the database must be a file")
	}
	*to, err = filepath.Abs(path)
	return err
}

// HostPort accepts HOST:PORT, whose host can be empty.
func HostPort(to *string, v string) error {
	_, port, err := net.SplitHostPort(v)
	if err != nil {
		return errors.New("must be HOST:PORT")
	}
	if err := CheckPort(port); err != nil {
		return err
	}
	*to = v
	return nil
}

// CheckPort returns an error unless the text is the number of a port, or 0.
func CheckPort(port string) error {
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 && port != "0" {
		return errors.New("the port must be a number up to 65535")
	}
	return nil
}

// items returns the elements of a comma-separated list that are not empty, without
// the white space around them.
func items(v string) (list []string) {
	for item := range strings.SplitSeq(v, ",") {
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return list
}

// File accepts the name of a readable file, or an empty value.
func File(to *string, v string) (err error) {
	if v == "" {
		return nil
	}
	if _, err := os.ReadFile(v); err != nil {
		return FileError(err)
	}
	*to, err = filepath.Abs(v)
	return err
}

// Dir accepts the name of a readable directory, or an empty value.
func Dir(to *string, v string) (err error) {
	if v == "" {
		return nil
	}
	if _, err := os.ReadDir(v); err != nil {
		return fmt.Errorf("must name a readable directory: %w", withoutPath(err))
	}
	*to, err = filepath.Abs(v)
	return err
}

// TenYears is the longest duration that a setting can have.
const TenYears = 10 * 365 * 24 * time.Hour

// TTL accepts a Go duration or, as in Flask-JWT-Extended, a number of seconds: at
// least shortest, and at most longest.
func TTL(ttl *time.Duration, v string, shortest, longest time.Duration) error {
	d, err := time.ParseDuration(v)
	if err != nil {
		d, err = time.ParseDuration(v + "s")
	}
	if err != nil || d < shortest || d > longest {
		most := "ten years"
		if longest < TenYears {
			most = FormatTTL(longest)
		}
		return fmt.Errorf("must be a duration such as 90m, or seconds; from %s to %s", FormatTTL(shortest), most)
	}
	*ttl = d
	return nil
}

// DaysTTL is TTL, but also accepts a number of days, such as 90d.
func DaysTTL(ttl *time.Duration, v string, shortest, longest time.Duration) error {
	const day = 24 * time.Hour
	if digits, ok := strings.CutSuffix(v, "d"); ok {
		if n, err := strconv.Atoi(digits); err == nil && n >= 0 && n <= int(longest/day) {
			v = (time.Duration(n) * day).String()
		}
	}
	return TTL(ttl, v, shortest, longest)
}

// FormatTTL returns a duration as [TTL] accepts it: whole hours as 24h, not as 24h0m0s.
func FormatTTL(d time.Duration) string { return strings.Replace(d.String(), "h0m0s", "h", 1) }

// TTLOrZero is TTL from a second to ten years, but also accepts 0, which means forever.
func TTLOrZero(ttl *time.Duration, v string) error {
	if v == "0" {
		*ttl = 0
		return nil
	}
	if TTL(ttl, v, time.Second, TenYears) != nil {
		return errors.New("must be a duration such as 9600h, or seconds; from 1s to ten years, or 0 for no limit")
	}
	return nil
}

// Word accepts one of the words.
func Word[T ~string](to *T, v string, words ...T) error {
	if !slices.Contains(words, T(v)) {
		return fmt.Errorf("must be %s", OrList(words))
	}
	*to = T(v)
	return nil
}

// OrList returns the words that are not empty as "a, b or c".
func OrList[T ~string](words []T) (list string) {
	for i, w := range words {
		switch {
		case list == "":
			list = string(w)
		case i == len(words)-1:
			list += " or " + string(w)
		default:
			list += ", " + string(w)
		}
	}
	return list
}

// MaxNames is the largest size of a name or a list of names, in bytes. It bounds the size
// of the tokens that contain them.
const MaxNames = 200

// Name accepts a name that JSON can hold without escapes (StringOrURI of RFC 7519
// section 2, in ASCII), or an empty value.
func Name(to *string, v string) error {
	if len(v) > MaxNames || strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
		return fmt.Errorf("must have at most %d bytes of ASCII, without spaces, quotes and backslashes", MaxNames)
	}
	*to = v
	return nil
}

// Names accepts a list of what [Name] accepts.
func Names(to *[]string, v string) error {
	for _, item := range items(v) {
		if err := Name(&item, item); err != nil || len(v) > MaxNames {
			return fmt.Errorf("must be a list of names, %d bytes in all, of ASCII without spaces, quotes and backslashes", MaxNames)
		}
		*to = append(*to, item)
	}
	return nil
}

// Number accepts an integer from lowest to highest.
func Number(to *int, v string, lowest, highest int) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < lowest || n > highest {
		return fmt.Errorf("must be a number from %d to %d", lowest, highest)
	}
	*to = n
	return nil
}

// Level accepts debug, info, warn or error.
func Level(to *slog.Level, v string) error {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	level, ok := levels[v]
	if !ok {
		return errors.New("must be debug, info, warn or error")
	}
	*to = level
	return nil
}

// Networks accepts a list of addresses and CIDRs. It turns IPv4 addresses that are mapped to
// IPv6 into IPv4, so a client's address must be compared as IPv4 too.
func Networks(to *[]netip.Prefix, v string) error {
	for i, item := range items(v) {
		prefix, err := netip.ParsePrefix(item)
		if address, notAddress := netip.ParseAddr(item); notAddress == nil {
			prefix, err = address.Prefix(address.BitLen())
		}
		if err != nil {
			return fmt.Errorf("element %d is neither an address nor a CIDR such as 10.0.0.0/8", i+1)
		}
		if a := prefix.Addr(); a.Is4In6() && prefix.Bits() >= 96 {
			prefix = netip.PrefixFrom(a.Unmap(), prefix.Bits()-96)
		}
		*to = append(*to, prefix.Masked())
	}
	return nil
}

// Origins accepts a list of origins as browsers write them (RFC 6454 section 6.2), which can
// be compared as text.
func Origins(to *[]string, v string) error {
	for i, item := range items(v) {
		u, err := url.Parse(item)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || strings.ContainsRune(item, '*') ||
			item != strings.ToLower(u.Scheme+"://"+u.Host) ||
			u.Scheme == "https" && u.Port() == "443" || u.Scheme == "http" && u.Port() == "80" || strings.HasSuffix(item, ":") {
			return fmt.Errorf("element %d is not an origin such as https://app.example.com, in lower case and without a user or a path", i+1)
		}
		*to = append(*to, item)
	}
	return nil
}

// isDomain reports whether a name is a domain name with at least one dot, in ASCII and in
// lower case, and not an IP address.
func isDomain(name string) bool {
	const label = `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`
	_, notAddress := netip.ParseAddr(name)
	return len(name) <= 253 && notAddress != nil && regexp.MustCompile(`^(`+label+`\.)+`+label+`$`).MatchString(name)
}

// EmailDomains accepts a list of domain names, each with or without a dot before it.
func EmailDomains(to *[]string, v string) error {
	for i, name := range items(strings.ToLower(v)) {
		if !isDomain(strings.TrimPrefix(name, ".")) {
			return fmt.Errorf("element %d is not a domain name such as example.com or .example.com, in ASCII (xn--…)", i+1)
		}
		*to = append(*to, name)
	}
	return nil
}

// CheckEmailDomain returns what is wrong with an e-mail address that must be at one of the
// domains, which [EmailDomains] accepted, or "". The domain is the text after the last @. An
// element of domains with a dot before it matches all names below it, but not the domain itself. An
// empty list matches every domain.
func CheckEmailDomain(email string, domains []string) string {
	name := strings.ToLower(email[strings.LastIndexByte(email, '@')+1:])
	matches := func(domain string) bool {
		return name == domain || domain[0] == '.' && strings.HasSuffix(name, domain)
	}
	if len(domains) == 0 || slices.ContainsFunc(domains, matches) {
		return ""
	}
	return "must be an address at " + OrList(domains)
}

// parsePublicURL reads a URL of a page or a server: https://, or http:// with a loopback
// address, and without a zone of an IPv6 address, which browsers refuse. It returns an error
// that says how the URL must look.
func parsePublicURL(v string) (*url.URL, error) {
	u, err := url.Parse(v)
	if err != nil || u.Hostname() == "" || u.User != nil || strings.ContainsAny(v, " \\\"<>") || strings.Contains(u.Host, "%") {
		return nil, errors.New("must be a URL such as https://id.example.com")
	}
	address, err := netip.ParseAddr(u.Hostname())
	local := u.Hostname() == "localhost" || err == nil && address.IsLoopback()
	if u.Scheme != "https" && (u.Scheme != "http" || !local) {
		return nil, errors.New("must begin with https://, or with http:// and a loopback address")
	}
	return u, nil
}

// PublicURL accepts the URL of a server, also one with a path below which the server
// is, or an empty value. It removes slashes at the end.
func PublicURL(to *string, v string) error {
	if v == "" {
		return nil
	}
	u, err := parsePublicURL(v)
	if err == nil && strings.ContainsAny(v, "?#") {
		err = errors.New("must have neither a query nor a fragment")
	}
	if err == nil {
		*to = strings.TrimRight(u.String(), "/")
	}
	return err
}

// PageURL accepts the URL of a page that contains {code} once, or an empty value.
func PageURL(to *string, v string) error {
	if v == "" {
		return nil
	}
	u, err := parsePublicURL(v)
	if err == nil && (strings.Count(v, "{code}") != 1 || strings.Contains(u.Host, "{")) {
		err = errors.New("must contain {code} once, after the host: https://app.example.com/reset#{code}")
	}
	if err == nil {
		*to = v
	}
	return err
}

// Domains accepts a list of names that can get a certificate by ACME: in ASCII, and without
// wildcards, which need a challenge in the DNS.
func Domains(to *[]string, v string) error {
	for i, name := range items(strings.ToLower(v)) {
		if !isDomain(name) {
			return fmt.Errorf("element %d is not a domain name such as example.com, in ASCII (xn--…) and without *", i+1)
		}
		if !slices.Contains(*to, name) {
			*to = append(*to, name)
		}
	}
	return nil
}

// HTTPS accepts a URL that begins with https://, as those of ACME directories do
// (RFC 8555 section 7.1.1).
func HTTPS(to *string, v string) error {
	u, err := url.Parse(v)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return errors.New("must be an address that begins with https://, without a user")
	}
	*to = v
	return nil
}
