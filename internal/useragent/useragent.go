// Package useragent reads the User-Agent of requests, which a stranger chooses.
package useragent

import (
	"cmp"
	"net/http"
	"strings"
)

// maxLen is the largest length of what Of returns, in bytes.
const maxLen = 256

// Of returns at most 256 bytes of the request's User-Agent, as valid UTF-8.
func Of(r *http.Request) string {
	text := strings.ToValidUTF8(r.UserAgent(), "\uFFFD")
	if len(text) > maxLen {
		text = strings.ToValidUTF8(text[:maxLen], "")
	}
	return text
}

// The names of programs and systems in a User-Agent, in the order in which they are
// looked for: most browsers name several.
var (
	browsers = [][2]string{{"Edg", "Edge"}, {"OPR/", "Opera"}, {"Firefox/", "Firefox"}, {"FxiOS/", "Firefox"}, {"CriOS/", "Chrome"}, {"Chrome/", "Chrome"}, {"Safari/", "Safari"}, {"curl/", "curl"}}
	systems  = [][2]string{{"Windows", "Windows"}, {"Android", "Android"}, {"iPhone", "iOS"}, {"iPad", "iOS"}, {"Mac OS X", "macOS"}, {"CrOS", "ChromeOS"}, {"Linux", "Linux"}}
)

// Name returns a name such as "Firefox on Linux", "curl" or "an unknown program" for a
// User-Agent. It repeats nothing of it, so another person may get the name in a mail.
func Name(agent string) string {
	name, system := cmp.Or(find(browsers, agent), "an unknown program"), find(systems, agent)
	if system == "" {
		return name
	}
	return name + " on " + system
}

// find returns the name of the first pair whose text is in agent, or "". A pair is a text and
// a name.
func find(names [][2]string, agent string) string {
	for _, name := range names {
		if strings.Contains(agent, name[0]) {
			return name[1]
		}
	}
	return ""
}
