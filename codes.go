package main

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// linkTo returns a new link that leads to a page, and the hash of its code. The host comes
// from the configuration, never from a request. It returns errNoAppURL if page is empty.
func linkTo(page string, kind codeKind) (link string, hash []byte, err error) {
	if page == "" {
		return "", nil, errNoAppURL
	}
	code := newCode(kind)
	hash, err = hashCode(kind, code)
	return strings.Replace(page, "{code}", code, 1), hash, err
}

// makeResetLink returns a link with which a user can set a new password once, and when it
// expires, for a caller. It returns errNoAppURL or an error of store.addResetLink.
func (s *userService) makeResetLink(ctx context.Context, by caller, pages pageURLs, userID int64, life time.Duration) (link string, expires int64, err error) {
	link, hash, err := linkTo(pages.reset, resetLinkCode)
	if err != nil {
		return "", 0, err
	}
	now := s.wall()
	expires = now.Add(life).Unix()
	return link, expires, s.store.addResetLink(ctx, by, userID, hash, now.Unix(), expires)
}

// lifetimeOf returns the lifetime that a client asks for, in seconds, or the standard one,
// and what is wrong with it.
func lifetimeOf(seconds *int64, l lifetime) (life time.Duration, why string) {
	if seconds == nil {
		return l.standard, ""
	}
	least, most := int64(l.shortest/time.Second), int64(l.longest/time.Second)
	if *seconds < least || *seconds > most {
		return 0, fmt.Sprintf("must be from %d to %d seconds", least, most)
	}
	return time.Duration(*seconds) * time.Second, ""
}

type registerRequest struct {
	Username string `json:"username"`
	Email    string `json:"email"`
	Password string `json:"password"`
}

func (s *server) register(x *exchange) error {
	if s.registration != registrationOpen {
		return errRegistrationClosed
	}
	in, err := decode[registerRequest](x.body())
	if err != nil {
		return err
	}
	u := user{username: in.Username, email: in.Email, role: member}
	if err := s.checkNew(&u, in.Password); err != nil {
		return err
	}
	if err := s.count(x, 0); err != nil {
		return err
	}
	if err := s.addUser(x.r.Context(), caller{kind: strangerCaller, address: x.address}, &u, in.Password); err != nil {
		return err
	}
	x.Header().Set("Location", userPath(u.id))
	return x.send(http.StatusCreated, append(appendUser(nil, &u, viewEmail), '\n'))
}

type forgotRequest struct {
	Login string `json:"login"`
}

// forgotPassword gives the same answer for every login: no mail can be sent.
func (s *server) forgotPassword(x *exchange) error {
	if _, err := decode[forgotRequest](x.body()); err != nil {
		return err
	}
	return errMailOff
}

type resetRequest struct {
	Code     string `json:"code"`
	Password string `json:"password"`
}

// resetPassword sets the password of the user that a reset code belongs to, and ends all
// of the user's sessions. It starts none: who holds the code need not be the user.
func (s *server) resetPassword(x *exchange) error {
	in, err := decode[resetRequest](x.body())
	if err != nil {
		return err
	}
	if in.Code == "" || in.Password == "" {
		return errResetFields
	}
	code, err := hashCode(resetLinkCode, in.Code)
	if err != nil {
		return err
	}
	if err := s.count(x, 0); err != nil {
		return err
	}
	u, err := s.store.userOfCode(code, s.wall().Unix())
	if err != nil {
		return err
	}
	x.target = u.id // for the log
	if err := s.checkChange(&change{}, &u, &in.Password); err != nil {
		return err
	}
	if err := s.allow(x, passwords); err != nil {
		return err
	}
	hash, err := s.hasher.Hash(x.r.Context(), network(x.address), in.Password)
	if err != nil {
		return err
	}
	if err := s.store.resetPassword(x.r.Context(), u.id, code, hash, x.address, s.wall().Unix()); err != nil {
		return err
	}
	return x.send(http.StatusOK, []byte(`{"message":"Password changed"}`+"\n"))
}

type linkRequest struct {
	CurrentPassword *string `json:"current_password"`
	ExpiresIn       *int64  `json:"expires_in"` // seconds
}

type linkAnswer struct {
	ID        int64     `json:"id,omitempty"` // of an invitation
	URL       string    `json:"url"`
	ExpiresAt time.Time `json:"expires_at"`
}

// createResetLink answers with a link for the user that the path names. The admin neither
// learns nor chooses the password.
func (s *server) createResetLink(x *exchange) error {
	in, err := decode[linkRequest](x.optionalBody())
	if err != nil {
		return err
	}
	if _, err := s.targetUser(x); err != nil {
		return err
	}
	wrong := make(fieldErrors)
	life, why := lifetimeOf(in.ExpiresIn, resetLinkLife)
	wrong.add("expires_in", why)
	if err := wrong.err(); err != nil {
		return err
	}
	if err := s.requireProof(x, makeLink, in.CurrentPassword); err != nil {
		return err
	}
	link, expires, err := s.makeResetLink(x.r.Context(), x.caller(), s.pages, x.target, life)
	if err != nil {
		return err
	}
	return x.sendJSON(http.StatusCreated, linkAnswer{URL: link, ExpiresAt: utc(expires)})
}

//go:embed assets/account.html
var accountHTML []byte

// pagePolicy is the Content-Security-Policy of the page: its own script and style run,
// and its script may only call this server.
var pagePolicy = sync.OnceValue(func() string {
	hash := func(tag string) string {
		_, text, _ := strings.Cut(string(accountHTML), "<"+tag+">")
		text, _, _ = strings.Cut(text, "</"+tag+">")
		sum := sha256.Sum256([]byte(text))
		return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	return "default-src 'none'; script-src " + hash("script") + "; style-src " + hash("style") +
		"; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
})

// accountPage answers with the page that sets a password or registers an invited user. The
// code is in the fragment of its URL, which browsers do not send: no log has it, and a
// program that follows links uses nothing up.
func (s *server) accountPage(x *exchange) error {
	header := x.Header()
	header["Content-Type"] = []string{"text/html; charset=utf-8"}
	header["Content-Security-Policy"] = []string{pagePolicy()}
	header["Referrer-Policy"] = []string{"no-referrer"}
	return x.send(http.StatusOK, accountHTML)
}
