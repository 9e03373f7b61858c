package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// A usageError is a wrong command or configuration: exit status 2.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// The errors a client can be answered with. Code returns them wrapped in what
// it was doing; answerFor turns them into a status, and only there.
var (
	errMalformedBody   = errors.New("malformed body")
	errDuplicateMember = errors.New("duplicate member")
	errUnknownMember   = errors.New("unknown member")
	errWrongType       = errors.New("wrong type")
	errInvalid         = errors.New("invalid value")
	errBadParameter    = errors.New("bad query parameter")
	errRegisterFields  = errors.New("a field of registration is missing")
	errLoginFields     = errors.New("a field of login is missing")
	errUsernameTaken   = errors.New("username taken")
	errEmailTaken      = errors.New("email taken")

	errCredentials   = errors.New("invalid credentials")
	errNoRefresh     = errors.New("no refresh token")
	errNoToken       = errors.New("no token")
	errBadToken      = errors.New("invalid token")
	errExpiredToken  = errors.New("expired token")
	errSessionEnded  = errors.New("session ended")
	errReused        = errors.New("refresh token reused")
	errNotFresh      = errors.New("fresh login required")
	errWrongPassword = errors.New("wrong current password")

	errForbidden          = errors.New("forbidden")
	errUserDisabled       = errors.New("user disabled")
	errRegistrationClosed = errors.New("registration closed")

	errNotFound        = errors.New("no such path")
	errUserNotFound    = errors.New("no such user")
	errSessionNotFound = errors.New("no such session")
	errMethod          = errors.New("method not allowed")
	errLastAdmin       = errors.New("last active admin")
	errReferenced      = errors.New("referenced by other data")
	errVersion         = errors.New("version mismatch")
	errTooLarge        = errors.New("body too large")
	errMediaType       = errors.New("unsupported media type")

	errLimited = errors.New("too many tries")
	errBusy    = errors.New("too many passwords at once")
	errStorage = errors.New("storage failed")

	errNotReady = errors.New("not ready")
)

// An answer is what a client is told of an error.
type answer struct {
	err    error
	status int
	code   string // stable, for programs; docs/api.md lists each
	text   string // for people; the tutorial's wording where it has one
}

// answers is ordered: the first row whose error matches speaks.
var answers = []answer{
	{errMalformedBody, http.StatusBadRequest, "malformed_body", "The body must be one JSON object"},
	{errDuplicateMember, http.StatusBadRequest, "duplicate_member", "A member appears twice in the body"},
	{errUnknownMember, http.StatusBadRequest, "unknown_member", "The body has a member this route does not know"},
	{errWrongType, http.StatusBadRequest, "wrong_type", "A member of the body has the wrong type"},
	{errInvalid, http.StatusBadRequest, "invalid_fields", "Some fields are not valid"},
	{errBadParameter, http.StatusBadRequest, "bad_parameter", "A query parameter is not valid"},
	{errRegisterFields, http.StatusBadRequest, "missing_fields", "Username, email, and password are required"},
	{errLoginFields, http.StatusBadRequest, "missing_fields", "Username and password are required"},
	{errUsernameTaken, http.StatusBadRequest, "username_taken", "Username already exists"},
	{errEmailTaken, http.StatusBadRequest, "email_taken", "Email already exists"},

	{errCredentials, http.StatusUnauthorized, "invalid_credentials", "Invalid credentials"},
	{errNoRefresh, http.StatusUnauthorized, "missing_token", "Send the refresh token, as refresh_token in the body or as Authorization: Bearer"},
	{errNoToken, http.StatusUnauthorized, "missing_token", "Log in, and send the access token as Authorization: Bearer"},
	{errExpiredToken, http.StatusUnauthorized, "expired_token", "The token has expired"},
	{errSessionEnded, http.StatusUnauthorized, "session_ended", "The session of this token has ended"},
	{errReused, http.StatusUnauthorized, "reused_token", "This refresh token was used before, so its session has ended: log in again"},
	{errBadToken, http.StatusUnauthorized, "invalid_token", "The token is not valid"},
	{errNotFresh, http.StatusUnauthorized, "fresh_login_required", "Log in again, or send your current_password"},
	{errWrongPassword, http.StatusUnauthorized, "wrong_password", "The current password is wrong"},

	{errForbidden, http.StatusForbidden, "forbidden", "Only the user itself or an admin may do this"},
	{errUserDisabled, http.StatusForbidden, "user_disabled", "This user is disabled"},
	{errRegistrationClosed, http.StatusForbidden, "registration_closed", "Registration is closed: an admin adds users"},

	{errNotFound, http.StatusNotFound, "not_found", "There is nothing at this path"},
	{errUserNotFound, http.StatusNotFound, "user_not_found", "User not found"},
	{errSessionNotFound, http.StatusNotFound, "session_not_found", "Session not found"},
	{errMethod, http.StatusMethodNotAllowed, "method_not_allowed", "This method is not allowed here; Allow lists those that are"},
	{errLastAdmin, http.StatusConflict, "last_admin", "The last active admin cannot be deleted, demoted or disabled"},
	{errReferenced, http.StatusConflict, "user_referenced", "Another program's data in the database refers to this user"},
	{errVersion, http.StatusPreconditionFailed, "version_mismatch", "The user has changed since it was read"},
	{errTooLarge, http.StatusRequestEntityTooLarge, "body_too_large", "The body is larger than 64 KiB"},
	{errMediaType, http.StatusUnsupportedMediaType, "unsupported_media_type", "Send Content-Type: application/json"},

	{errLimited, http.StatusTooManyRequests, "too_many_requests", "Too many tries from here; try again after the seconds in Retry-After"},
	{context.Canceled, http.StatusServiceUnavailable, "unavailable", "The request was given up"}, // by its client, who will not read this
	{errBusy, http.StatusServiceUnavailable, "busy", "Too many requests at once; try again shortly"},
	{errStorage, http.StatusServiceUnavailable, "unavailable", "The service cannot do this now; try again shortly"},
	{errNotReady, http.StatusServiceUnavailable, "unavailable", "The service is not ready"},
}

// unknown answers whatever the table does not name. Its error stays in the log.
var unknown = answer{nil, http.StatusInternalServerError, "internal", "Internal server error"}

// answerFor finds what to tell a client of err.
func answerFor(err error) answer {
	for _, a := range answers {
		if errors.Is(err, a.err) {
			return a
		}
	}
	return unknown
}

// A fault is one of the errors above with details meant for the client's eyes.
// It never carries the text of another error.
type fault struct {
	kind   error
	text   string            // stands in for the table's text; empty: the table's
	fields map[string]string // what is wrong with each field
}

func (f *fault) Error() string {
	if f.text == "" {
		return f.kind.Error()
	}
	return f.kind.Error() + ": " + f.text
}

func (f *fault) Unwrap() error { return f.kind }

// fieldErrors gathers what is wrong with the fields of a body.
type fieldErrors map[string]string

func (f fieldErrors) add(name, why string) {
	if why != "" {
		f[name] = why
	}
}

// err returns an error that names each field and its fault, or nil.
func (f fieldErrors) err() error {
	if len(f) == 0 {
		return nil
	}
	var text []string
	for name, why := range f {
		text = append(text, name+" "+why)
	}
	slices.Sort(text)
	return &fault{kind: errInvalid, text: "Not valid: " + strings.Join(text, "; "), fields: f}
}

// shorten cuts what a client sent to what an error should repeat of it.
func shorten(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
