package prom

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Requests counts HTTP requests by route, method and status, and how long they take. The zero
// value is ready to use. The methods of Requests and [Route] can be called concurrently.
type Requests struct {
	mu     sync.Mutex
	routes []*Route
}

// A Route counts the requests of one route.
type Route struct {
	pattern string
	mu      sync.RWMutex
	series  []*requestSeries // few
}

// A requestSeries counts the requests of a route with one method and one status.
type requestSeries struct {
	method    string
	status    int
	durations *Histogram
}

// Route returns the counters of a pattern of http.ServeMux, such as "GET /users/{id}", or of
// the requests that match no route for "". It always returns the same Route for a pattern.
func (r *Requests) Route(pattern string) *Route {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range r.routes {
		if x.pattern == pattern {
			return x
		}
	}
	x := &Route{pattern: pattern}
	r.routes = append(r.routes, x)
	return x
}

// Observe counts a request. Every request runs it, so it allocates only if it adds a series.
func (r *Route) Observe(method string, status int, duration time.Duration) {
	method = knownMethod(method)
	r.mu.RLock()
	x := r.find(method, status)
	r.mu.RUnlock()
	if x == nil {
		r.mu.Lock()
		if x = r.find(method, status); x == nil {
			x = &requestSeries{method, status, NewDurationHistogram()}
			r.series = append(r.series, x)
		}
		r.mu.Unlock()
	}
	x.durations.Observe(int64(duration))
}

// find returns a series, or nil. The caller holds the lock.
func (r *Route) find(method string, status int) *requestSeries {
	for _, x := range r.series {
		if x.status == status && x.method == method {
			return x
		}
	}
	return nil
}

// knownMethod returns the method, or "other" if it is not a usual one: a client can send any
// word, and each word would be a series.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return method
	}
	return "other"
}

// Requests adds a family of histograms, with the labels route (the path of the pattern, or
// "none"), method and status.
func (p *Page) Requests(name, help string, r *Requests) {
	p.Family(name, "histogram", help)
	r.mu.Lock()
	routes := slices.Clone(r.routes)
	r.mu.Unlock()
	for _, route := range routes {
		path := "none"
		if route.pattern != "" {
			_, path, _ = strings.Cut(route.pattern, " ")
		}
		route.mu.RLock()
		list := slices.Clone(route.series) // requests must not wait for the page
		route.mu.RUnlock()
		for _, x := range list {
			p.Histogram(name, Labels("route", path, "method", x.method, "status", strconv.Itoa(x.status)), x.durations)
		}
	}
}
