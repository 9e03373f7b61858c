// Package cors lets pages of other origins read the answers of an API
// (https://fetch.spec.whatwg.org/#http-cors-protocol). It does not allow credentials: a page
// sends its token itself.
package cors

import (
	"net/http"
	"slices"
)

// An API says what the pages of other origins may use. Each field is a list with commas.
type API struct {
	Methods string
	Accepts string // headers that a page may send; a browser refuses a request with another one
	Exposes string // headers of an answer that a page may read
}

// Allow sets the headers of the answer to a request whose Origin is one of origins, letter for
// letter. For any other request, it sets only Vary. It reports whether the request is a
// preflight request that the caller answers with 204 and no body; a browser may keep that
// answer for 600 seconds.
func (a *API) Allow(header http.Header, r *http.Request, origins []string) (preflight bool) {
	header["Vary"] = []string{"Origin"}
	origin := r.Header.Get("Origin")
	if !slices.Contains(origins, origin) {
		return false
	}
	header["Access-Control-Allow-Origin"] = []string{origin}
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		header["Access-Control-Expose-Headers"] = []string{a.Exposes}
		return false
	}
	header["Access-Control-Allow-Methods"] = []string{a.Methods}
	header["Access-Control-Allow-Headers"] = []string{a.Accepts}
	header["Access-Control-Max-Age"] = []string{"600"}
	return true
}
