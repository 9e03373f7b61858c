package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"userd/internal/headers"
	"userd/internal/param"
	"userd/internal/passhash"
	"userd/internal/reqbody"
	"userd/internal/strictjson"
)

// A usageError reports a wrong command or configuration. The exit status is 2.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// An apiError is an error that a client may see. Functions return it, wrapped or
// not, and answerFor finds it.
type apiError struct {
	status int    // of HTTP
	code   string // for programs; it never changes (docs/api.md)
	text   string // for people; the tutorial's text if the tutorial has one
}

func (e *apiError) Error() string { return e.text }

// with returns e with another text. Clients see the text, so it must not contain the
// text of another error.
func (e *apiError) with(format string, args ...any) *detailedError {
	return &detailedError{apiError: e, text: fmt.Sprintf(format, args...)}
}

// A detailedError is an apiError with details about one request.
type detailedError struct {
	*apiError
	text   string
	fields map[string]string // what is wrong with each field; may be nil

	*factorChallenge // what a login must send next; may be nil
}

// A factorChallenge is how a client completes a login whose password was right.
type factorChallenge struct {
	MFAToken  string   `json:"mfa_token"`
	ExpiresIn int64    `json:"expires_in"` // seconds
	Methods   []string `json:"methods"`    // what otp may be: totp, recovery_code
}

func (e *detailedError) Error() string { return e.text }
func (e *detailedError) Unwrap() error { return e.apiError }

// All errors that a client may see.
var (
	errMalformedBody   = &apiError{400, "malformed_body", "The body must be one JSON object"}
	errDuplicateMember = &apiError{400, "duplicate_member", "A member appears twice in the body"}
	errUnknownMember   = &apiError{400, "unknown_member", "The body has a member this route does not know"}
	errWrongType       = &apiError{400, "wrong_type", "A member of the body has the wrong type"}
	errInvalid         = &apiError{400, "invalid_fields", "Some fields are not valid"}
	errBadParameter    = &apiError{400, "bad_parameter", "A query parameter is not valid"}
	errRegisterFields  = &apiError{400, "missing_fields", "Username, email, and password are required"}
	errLoginFields     = &apiError{400, "missing_fields", "Username and password are required"}
	errUsernameTaken   = &apiError{400, "username_taken", "Username already exists"}
	errEmailTaken      = &apiError{400, "email_taken", "Email already exists"}
	errResetFields     = &apiError{400, "missing_fields", "Code and password are required"}
	errCodeFields      = &apiError{400, "missing_fields", "Code is required"}
	errForgotFields    = &apiError{400, "missing_fields", "Login is required: a username or an e-mail address"}
	errNoFormToken     = &apiError{400, "missing_fields", "Send token=TOKEN once, as a form"}
	errInvalidCode     = &apiError{400, "invalid_code", "This link or code is invalid, has expired or was used; ask for a new one"}

	errLoginFactorFields = &apiError{400, "missing_fields", "mfa_token and otp are required"}
	errOTPFields         = &apiError{400, "missing_fields", "otp is required: a code of the authenticator app"}

	errCredentials   = &apiError{401, "invalid_credentials", "Invalid credentials"}
	errNoRefresh     = &apiError{401, "missing_token", "Send the refresh token, as refresh_token in the body or as Authorization: Bearer"}
	errNoToken       = &apiError{401, "missing_token", "Log in, and send the access token as Authorization: Bearer"}
	errExpiredToken  = &apiError{401, "expired_token", "The token has expired"}
	errSessionEnded  = &apiError{401, "session_ended", "The session of this token has ended"}
	errReused        = &apiError{401, "reused_token", "This refresh token was used before, so its session has ended: log in again"}
	errBadToken      = &apiError{401, "invalid_token", "The token is not valid"}
	errNotFresh      = &apiError{401, "fresh_login_required", "Log in again, or send your current_password"}
	errWrongPassword = &apiError{401, "wrong_password", "The current password is wrong"}
	errExpiredKey    = &apiError{401, "expired_key", "The API key has expired: make a new one"}

	errSecondFactor = &apiError{401, "second_factor_required", "Send otp too: a code of your authenticator app, or a recovery code"}
	errWrongOTP     = &apiError{401, "wrong_otp", "This code is wrong"}
	errOTPUsed      = &apiError{401, "otp_used", "This code, or a newer one, was already used: wait for the next one"}
	errFactorLocked = &apiError{401, "recovery_code_required", "Too many wrong codes: only a recovery code is accepted until the next login"}
	errMFAToken     = &apiError{401, "invalid_mfa_token", "The mfa_token is invalid or has expired: send the password again"}

	errCrossOrigin        = &apiError{403, "cross_origin", "Only a page of this server may use the cookie"}
	errForbidden          = &apiError{403, "forbidden", "Only the user itself or an admin may do this"}
	errNoUsername         = &apiError{403, "forbidden", "This user has no username; give it one first"}
	errUserDisabled       = &apiError{403, "user_disabled", "This user is disabled"}
	errPendingApproval    = &apiError{403, "pending_approval", "An admin must approve this user before it can log in"}
	errRegistrationClosed = &apiError{403, "registration_closed", "Registration is closed: an admin adds users"}
	errNotInvited         = &apiError{403, "invitation_required", "Only invited users can register: ask an admin for an invitation"}
	errKeyScope           = &apiError{403, "insufficient_scope", "The scope of this API key does not permit this"}
	errFactorRequired     = &apiError{403, "factor_required", "This service requires a second factor: add one first"}
	errUnverified         = &apiError{403, "email_not_verified", "Verify your e-mail address first"}
	errMailOff            = &apiError{403, "mail_off", "This service sends no mail: ask an admin for a link to set a new password"}

	errNotFound           = &apiError{404, "not_found", "Path not found"}
	errUserNotFound       = &apiError{404, "user_not_found", "User not found"}
	errSessionNotFound    = &apiError{404, "session_not_found", "Session not found"}
	errMailNotFound       = &apiError{404, "mail_not_found", "No mail with this id is queued or has failed"}
	errInvitationNotFound = &apiError{404, "invitation_not_found", "Invitation not found"}
	errKeyNotFound        = &apiError{404, "key_not_found", "API key not found"}
	errNoFactor           = &apiError{404, "factor_not_found", "This user has no second factor"}
	errNoPendingFactor    = &apiError{404, "factor_not_pending", "No new factor waits for its first code, or 10 minutes have passed: begin again"}
	errMethod             = &apiError{405, "method_not_allowed", "This path does not allow the method; see the Allow header"}
	errLastAdmin          = &apiError{409, "last_admin", "The last active admin cannot be deleted, demoted or disabled"}
	errAlreadyVerified    = &apiError{409, "already_verified", "The e-mail address is already verified"}
	errKeyLimit           = &apiError{409, "too_many_keys", "A user has at most 50 valid API keys: revoke one first"}
	errServiceUser        = &apiError{409, "service_user", "A service user has neither a password nor an address, only API keys"}
	errNoAppURL           = &apiError{409, "no_app_url", "Links have no address yet: start the server once, outside development with APP_URL, the address that clients use"}
	errNotSendable        = &apiError{409, "invitation_not_sendable", "This invitation has no e-mail address, or is used up"}
	errReferenced         = &apiError{409, "user_referenced", "Another program's data in the database refers to this user"}
	errVersion            = &apiError{412, "version_mismatch", "The user has changed since it was read"}
	errTooLarge           = &apiError{413, "body_too_large", "The body is larger than 64 KiB"}
	errMediaType          = &apiError{415, "unsupported_media_type", "Send Content-Type: application/json"}
	errLimited            = &apiError{429, "too_many_requests", "Too many attempts; wait for the number of seconds in Retry-After"}

	errBusy     = &apiError{503, "busy", "Too many concurrent requests; try again shortly"}
	errStorage  = &apiError{503, "unavailable", "The service cannot do this now; try again shortly"}
	errNotReady = &apiError{503, "unavailable", "The service is not ready"}
	errGivenUp  = &apiError{503, "unavailable", "The request was given up"} // by the client, which does not read this

	errInternal = &apiError{500, "internal", "Internal server error"} // for any error that wraps none of these
)

// answerFor returns the apiError that answers err. Only this function turns errors
// into statuses.
func answerFor(err error) *apiError {
	if errors.Is(err, context.Canceled) { // a storageError may wrap it
		return errGivenUp
	}
	if errors.Is(err, passhash.ErrBusy) {
		return errBusy
	}
	if e, ok := errors.AsType[*apiError](err); ok {
		return e
	}
	return errInternal
}

// plainError replaces an error by the text that a client would see, but keeps the cause
// of a storage error.
func plainError(err error) error {
	if errors.Is(err, context.Canceled) { // also if the database reports it
		return errors.New("interrupted")
	}
	if errors.Is(err, errStorage) {
		return err
	}
	if d, ok := errors.AsType[*detailedError](err); ok {
		return errors.New(d.text)
	}
	if a := answerFor(err); a != errInternal {
		return errors.New(a.text)
	}
	return err
}

// clientError returns the error that tells a client what a leaf package refused: its
// token, its body, a member of its body or a query parameter. It returns other errors unchanged.
func clientError(err error) error {
	switch {
	case errors.Is(err, headers.ErrNoBearer):
		return errNoToken
	case errors.Is(err, headers.ErrTwoHeaders):
		return errBadToken
	case errors.Is(err, reqbody.ErrTooLarge):
		return errTooLarge
	case errors.Is(err, reqbody.ErrBusy):
		return errBusy
	case errors.Is(err, reqbody.ErrIncomplete):
		return errMalformedBody.with("The body is incomplete")
	case errors.Is(err, param.ErrMalformed):
		return errBadParameter.with("The query is malformed")
	}
	if e, ok := errors.AsType[*param.Error](err); ok {
		name := shorten(e.Name)
		err := errBadParameter.with("The query parameter %q %s", name, e.Text)
		err.fields = map[string]string{name: e.Text}
		return err
	}
	if e, ok := errors.AsType[*strictjson.Error](err); ok {
		return memberError(e)
	}
	return err
}

// memberError returns the error that tells a client why strictjson refused its body.
func memberError(e *strictjson.Error) error {
	name := shorten(e.Member)
	switch e.Kind {
	case strictjson.Duplicate:
		return errDuplicateMember.with("The member %q %s in the body", name, e.Text)
	case strictjson.Unknown:
		return errUnknownMember.with("The body has the member %q, which this route does not know", name)
	case strictjson.WrongType:
		err := errWrongType.with("The member %q %s", name, e.Text)
		err.fields = map[string]string{e.Member: e.Text}
		return err
	}
	if e.Member == "" {
		return errMalformedBody.with("The body %s", e.Text)
	}
	return errMalformedBody.with("The member %q %s", name, e.Text)
}

// A storageError reports a failure of the database. Clients see errStorage; only the
// log and the command line show its cause.
type storageError struct {
	doing string
	cause error
}

func (e *storageError) Error() string   { return "database: " + e.doing + ": " + e.cause.Error() }
func (e *storageError) Unwrap() []error { return []error{errStorage, e.cause} }

// fieldErrors are the names of invalid fields and what is wrong with each.
type fieldErrors map[string]string

func (f fieldErrors) add(name, why string) {
	if why != "" {
		f[name] = why
	}
}

// err returns an errInvalid that names each field and what is wrong with it, or nil
// if there are none.
func (f fieldErrors) err() error {
	if len(f) == 0 {
		return nil
	}
	var text []string
	for name, why := range f {
		text = append(text, name+" "+why)
	}
	slices.Sort(text)
	return &detailedError{apiError: errInvalid, text: "Not valid: " + strings.Join(text, "; "), fields: f}
}

// shorten returns at most the first 64 bytes of a client's text, for an error.
func shorten(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// plural returns a number with the noun that it counts: "1 user", "2 users".
func plural[N int | int64](n N, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprint(n, " ", noun)
}
