package main

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

// Errors can end up in a log that other people read, so they repeat no possible secret. An
// error about a setting that names a file omits the value, because an operator may have set
// the secret itself (fileError). An error about another setting repeats only the result of
// withoutSecrets. An error about an import file repeats only known names.

// fileError returns why a file could not be read, without the name of the file.
func fileError(err error) error {
	if failed, ok := errors.AsType[*fs.PathError](err); ok {
		err = failed.Err
	}
	return fmt.Errorf("must name a readable file: %w", err)
}

// urlScheme matches the scheme of a URL, even after a quote or a space. It does not match
// a single letter, which is a Windows drive.
var urlScheme = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]+:|[^:/]*://)`)

// connectionString matches text that is neither a path nor a URL and may hold a password,
// such as "host=db password=x".
var connectionString = regexp.MustCompile(`(?i)^//[^/]*@|\b(password|passwd|pwd)\s*=|[\r\n]`)

// withoutSecrets returns a value without the parts that can hold a password: the user info
// and the query of a URL. If it cannot find these parts, it returns only the scheme.
func withoutSecrets(v string) string {
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

func setHostPort(to *string, v string) error {
	_, port, err := net.SplitHostPort(v)
	if err != nil {
		return errors.New("must be HOST:PORT")
	}
	if err := checkPort(port); err != nil {
		return err
	}
	*to = v
	return nil
}

func checkPort(port string) error {
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

// setFile accepts the name of a readable file, or nothing.
func setFile(to *string, v string) (err error) {
	if v == "" {
		return nil
	}
	if _, err := os.ReadFile(v); err != nil {
		return fileError(err)
	}
	*to, err = filepath.Abs(v)
	return err
}

const tenYears = 10 * 365 * 24 * time.Hour

// setTTL sets a Go duration or, as in Flask-JWT-Extended, a number of seconds: at
// least shortest, and at most longest.
func setTTL(ttl *time.Duration, v string, shortest, longest time.Duration) error {
	d, err := time.ParseDuration(v)
	if err != nil {
		d, err = time.ParseDuration(v + "s")
	}
	if err != nil || d < shortest || d > longest {
		most := "ten years"
		if longest < tenYears {
			most = inHours(longest)
		}
		return fmt.Errorf("must be a duration such as 90m, or seconds; from %s to %s", inHours(shortest), most)
	}
	*ttl = d
	return nil
}

// inHours returns a duration as setTTL accepts it: whole hours as 24h, not as 24h0m0s.
func inHours(d time.Duration) string { return strings.Replace(d.String(), "h0m0s", "h", 1) }

// setTTLOrZero is setTTL from a second to ten years, but also accepts 0, which means forever.
func setTTLOrZero(ttl *time.Duration, v string) error {
	if v == "0" {
		*ttl = 0
		return nil
	}
	if setTTL(ttl, v, time.Second, tenYears) != nil {
		return errors.New("must be a duration such as 9600h, or seconds; from 1s to ten years, or 0 for no limit")
	}
	return nil
}

// setWord accepts one of the words.
func setWord[T ~string](to *T, v string, words ...T) error {
	if !slices.Contains(words, T(v)) {
		return fmt.Errorf("must be %s", orList(words))
	}
	*to = T(v)
	return nil
}

// orList returns the words that are not empty as "a, b or c".
func orList[T ~string](words []T) (list string) {
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

// maxNames is the largest size of a name or a list of names, in bytes: a token with these
// names must not exceed maxToken.
const maxNames = 200

// setName accepts a name that JSON can hold without escapes (StringOrURI of RFC 7519
// section 2, in ASCII), or nothing.
func setName(to *string, v string) error {
	if len(v) > maxNames || strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
		return fmt.Errorf("must have at most %d bytes of ASCII, without spaces, quotes and backslashes", maxNames)
	}
	*to = v
	return nil
}

func setNames(to *[]string, v string) error {
	for _, item := range items(v) {
		if err := setName(&item, item); err != nil || len(v) > maxNames {
			return fmt.Errorf("must be a list of names, %d bytes in all, of ASCII without spaces, quotes and backslashes", maxNames)
		}
		*to = append(*to, item)
	}
	return nil
}

func setLength(to *int, v string) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < minPassword || n > maxMinPassword {
		return fmt.Errorf("must be a number from %d to %d", minPassword, maxMinPassword)
	}
	*to = n
	return nil
}

func setLevel(to *slog.Level, v string) error {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	level, ok := levels[v]
	if !ok {
		return errors.New("must be debug, info, warn or error")
	}
	*to = level
	return nil
}

// setNetworks accepts a list of addresses and CIDRs.
func setNetworks(to *[]netip.Prefix, v string) error {
	for i, item := range items(v) {
		prefix, err := netip.ParsePrefix(item)
		if address, notAddress := netip.ParseAddr(item); notAddress == nil {
			prefix, err = address.Prefix(address.BitLen())
		}
		if err != nil {
			return fmt.Errorf("element %d is neither an address nor a CIDR such as 10.0.0.0/8", i+1)
		}
		if a := prefix.Addr(); a.Is4In6() && prefix.Bits() >= 96 { // userd compares client addresses as IPv4
			prefix = netip.PrefixFrom(a.Unmap(), prefix.Bits()-96)
		}
		*to = append(*to, prefix.Masked())
	}
	return nil
}

// setOrigins accepts origins as browsers write them (RFC 6454 section 6.2), because
// userd compares them as text.
func setOrigins(to *[]string, v string) error {
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

// setEmailDomains accepts domain names, each with or without a dot before it.
func setEmailDomains(to *[]string, v string) error {
	for i, name := range items(strings.ToLower(v)) {
		if !isDomain(strings.TrimPrefix(name, ".")) {
			return fmt.Errorf("element %d is not a domain name such as example.com or .example.com, in ASCII (xn--…)", i+1)
		}
		*to = append(*to, name)
	}
	return nil
}

// checkEmailDomain returns what is wrong with the domain of an address that registers
// without an invitation, or "". The domain is the text after the last @. An element of
// domains with a dot before it matches all names below it, but not the domain itself. An
// empty list matches every domain.
func checkEmailDomain(email string, domains []string) string {
	name := strings.ToLower(email[strings.LastIndexByte(email, '@')+1:])
	matches := func(domain string) bool {
		return name == domain || domain[0] == '.' && strings.HasSuffix(name, domain)
	}
	if len(domains) == 0 || slices.ContainsFunc(domains, matches) {
		return ""
	}
	return "must be an address at " + orList(domains)
}

// parsePublicURL reads a URL of a page or a server: https://, or http:// with a loopback
// address. It returns an error that says how the URL must look.
func parsePublicURL(v string) (*url.URL, error) {
	u, err := url.Parse(v)
	if err != nil || u.Hostname() == "" || u.User != nil || strings.ContainsAny(v, " \\\"<>") {
		return nil, errors.New("must be a URL such as https://id.example.com")
	}
	address, err := netip.ParseAddr(u.Hostname())
	local := u.Hostname() == "localhost" || err == nil && address.IsLoopback()
	if u.Scheme != "https" && (u.Scheme != "http" || !local) {
		return nil, errors.New("must begin with https://, or with http:// and a loopback address")
	}
	return u, nil
}

// setPublicURL accepts the URL of a server, also one with a path below which the server
// is, or an empty value. It removes slashes at the end.
func setPublicURL(to *string, v string) error {
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

// setPageURL accepts the URL of a page that contains {code} once, or an empty value.
func setPageURL(to *string, v string) error {
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

// setDomains accepts names that userd can get a certificate for by ACME: in ASCII,
// and without wildcards, which need a challenge in the DNS.
func setDomains(to *[]string, v string) error {
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

// setHTTPS accepts a URL that begins with https://, as those of ACME directories do
// (RFC 8555 section 7.1.1).
func setHTTPS(to *string, v string) error {
	u, err := url.Parse(v)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return errors.New("must be an address that begins with https://, without a user")
	}
	*to = v
	return nil
}
