// Verify is a service that verifies the access tokens of userd itself, without a request to
// userd for each token. It follows the event feed, so that it refuses the tokens of a session
// that has ended before they expire.
package main

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

var (
	errRefused     = errors.New("the token is not valid")
	errUnavailable = errors.New("userd does not answer")
)

// claims are those claims of an access token that a service reads. Userd identifies users and
// sessions by numbers, and writes them as text.
type claims struct {
	Type     string `json:"type"`
	User     string `json:"sub"`
	Session  string `json:"sid"`
	Issuer   string `json:"iss"`
	Audience names  `json:"aud"`
	Issued   int64  `json:"iat"`
	Expires  int64  `json:"exp"`
}

// names are one name or a list of names.
type names []string

func (n *names) UnmarshalJSON(data []byte) error {
	if data[0] == '"' {
		*n = make(names, 1)
		return json.Unmarshal(data, &(*n)[0])
	}
	return json.Unmarshal(data, (*[]string)(n))
}

type verifier struct {
	secret           []byte // of at least 32 bytes
	issuer, audience string
	userd, key       string // its URL, and an API key with the scope admin

	mu        sync.Mutex
	connected bool             // to the event feed
	since     int64            // when the feed began, by the clock of userd
	last      string           // the id of the last event
	sessions  map[string]int64 // that have ended, with the time
	users     map[string]int64 // whose sessions have all ended, with the time
}

// header is the only header of userd's tokens if JWT_SECRET_KEY is set. A token cannot choose
// another algorithm.
var header = base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`))

// verify returns the claims of a valid access token, errRefused, or errUnavailable.
func (v *verifier) verify(ctx context.Context, token string) (claims, error) {
	var c claims
	dot := max(strings.LastIndexByte(token, '.'), 0)
	input, encoded := token[:dot], strings.TrimPrefix(token[dot:], ".")
	signature, err := base64.RawURLEncoding.DecodeString(encoded)
	mac := hmac.New(sha256.New, v.secret)
	mac.Write([]byte(input))
	if err != nil || !hmac.Equal(signature, mac.Sum(nil)) || !strings.HasPrefix(input, header+".") {
		return c, errRefused
	}
	payload, err := base64.RawURLEncoding.DecodeString(input[len(header)+1:])
	if err != nil || json.Unmarshal(payload, &c) != nil {
		return c, errRefused
	}
	now := time.Now().Unix()
	if c.Type != "access" || c.Issuer != v.issuer || !slices.Contains(c.Audience, v.audience) || now >= c.Expires || c.Issued > now+60 {
		return c, errRefused
	}
	v.mu.Lock()
	_, ended := v.sessions[c.Session]
	ended = ended || c.Issued <= v.users[c.User]
	known := v.connected && c.Issued > v.since
	v.mu.Unlock()
	switch {
	case ended:
		return c, errRefused
	case known:
		return c, nil
	}
	return c, v.introspect(ctx, token) // the feed does not say what was before it began
}

// introspect asks userd whether a token is valid.
func (v *verifier) introspect(ctx context.Context, token string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "POST", v.userd+"/api/introspect", strings.NewReader(url.Values{"token": {token}}.Encode()))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+v.key)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return errUnavailable
	}
	defer resp.Body.Close()
	var answer struct{ Active bool }
	if resp.StatusCode != http.StatusOK || json.NewDecoder(resp.Body).Decode(&answer) != nil {
		return errUnavailable
	}
	if !answer.Active {
		return errRefused
	}
	return nil
}

// follow follows the event feed until ctx ends, and connects again if it breaks.
func (v *verifier) follow(ctx context.Context) {
	for ctx.Err() == nil {
		err := v.read(ctx)
		v.mu.Lock()
		v.connected = false
		v.mu.Unlock()
		log.Printf("the event feed ended: %v", err)
		time.Sleep(time.Second)
	}
}

// read reads the feed until it breaks. Userd sends something at least every 15 seconds.
func (v *verifier) read(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silence := time.AfterFunc(30*time.Second, cancel)
	r, err := http.NewRequestWithContext(ctx, "GET", v.userd+"/api/events", nil)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+v.key)
	r.Header.Set("Accept", "text/event-stream")
	if v.last != "" {
		r.Header.Set("Last-Event-ID", v.last)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	began, err := http.ParseTime(resp.Header.Get("Date"))
	if resp.StatusCode != http.StatusOK || err != nil {
		return fmt.Errorf("userd answers %s, %v", resp.Status, err)
	}
	var id, data string
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		silence.Reset(30 * time.Second)
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "id":
			id = value
		case "data":
			data = value
		case "": // the end of an event, or a comment
			v.record(id, data, began.Unix())
			data = ""
		}
	}
	return lines.Err()
}

// lifetime is the longest lifetime of an access token, in seconds.
const lifetime = 24 * 60 * 60

// record notes the event with this id. Without data, the id says only where the feed is.
func (v *verifier) record(id, data string, began int64) {
	var e struct {
		Type    string    `json:"type"`
		At      time.Time `json:"at"`
		User    int64     `json:"user_id"`
		Session int64     `json:"session_id"`
		Changes []string  `json:"changes"`
	}
	if data != "" && json.Unmarshal([]byte(data), &e) != nil {
		log.Printf("could not read the event %s", data)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.last == "" {
		v.since = began
	}
	v.connected, v.last = true, id
	user := strconv.FormatInt(e.User, 10)
	switch e.Type {
	case "session_ended", "token_reused":
		v.sessions[strconv.FormatInt(e.Session, 10)] = e.At.Unix()
	case "sessions_ended", "user_deleted", "password_reset", "email_restored", "factor_added":
		v.users[user] = e.At.Unix()
	case "user_changed":
		if slices.Contains(e.Changes, "password") || slices.Contains(e.Changes, "disabled=true") {
			v.users[user] = e.At.Unix()
		}
	}
	for _, ended := range []map[string]int64{v.sessions, v.users} {
		for key, at := range ended {
			if at < e.At.Unix()-lifetime {
				delete(ended, key)
			}
		}
	}
}

// serve answers with the id of the user whose token the request has.
func (v *verifier) serve(w http.ResponseWriter, r *http.Request) {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	c, err := v.verify(r.Context(), token)
	switch {
	case errors.Is(err, errRefused):
		w.Header().Set("WWW-Authenticate", "Bearer")
		http.Error(w, err.Error(), http.StatusUnauthorized)
	case err != nil:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	default:
		fmt.Fprintf(w, "user %s\n", c.User)
	}
}

func main() {
	env := func(name string) string {
		value := os.Getenv(name)
		if value == "" {
			log.Fatalf("%s is not set", name)
		}
		return value
	}
	v := &verifier{
		secret: []byte(env("JWT_SECRET_KEY")), issuer: env("JWT_ENCODE_ISSUER"), audience: env("JWT_ENCODE_AUDIENCE"),
		userd: env("USERD_URL"), key: env("USERD_KEY"), sessions: make(map[string]int64), users: make(map[string]int64),
	}
	go v.follow(context.Background())
	log.Fatal(http.ListenAndServe(env("ADDR"), http.HandlerFunc(v.serve)))
}
