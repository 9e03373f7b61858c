package main

import (
	"cmp"
	"crypto/rand"

	"userd/internal/otp"
	"userd/internal/passhash"
	"userd/internal/rows"
	"userd/internal/validate"
)

// An importRow is one user of an import file. number and end are those of its rows.Row.
type importRow struct {
	number   int
	end      int64 // bytes
	user     user
	password string // to be hashed; empty if hash is given
	hash     string
	totp     string // a secret in base32; empty: no second factor
}

// set fills the row from its fields, by name, and returns its problem, or "".
func (r *importRow) set(fields map[string]string, policy validate.Policy) (problem string) {
	wrong := make(fieldErrors)
	truth := func(name string) bool {
		value, why := rows.Bool(fields[name])
		wrong.add(name, why)
		return value
	}
	seconds := func(name string) int64 {
		n, why := rows.Time(fields[name])
		wrong.add(name, why)
		return n
	}
	u := &r.user
	u.username, u.email, u.role = validate.TrimName(fields["username"]), validate.TrimName(fields["email"]), role(cmp.Or(fields["role"], string(member)))
	wrong.add("username", validate.Username(u.username))
	u.service = truth("service")
	r.setPassword(fields, policy, wrong)
	if v := fields["id"]; v != "" {
		var err error
		if u.id, err = parseID(v); err != nil || u.id > maxID {
			wrong.add("id", "must be an integer from 1 to 2^52-1")
		}
	}
	if !u.service {
		wrong.add("email", validate.Email(u.email))
	}
	wrong.add("role", checkRole(u.role))
	if truth("is_superuser") {
		u.role = admin
	}
	u.disabled = truth("disabled") || fields["is_active"] != "" && !truth("is_active")
	u.createdAt, u.updatedAt, u.lastLoginAt = seconds("created_at"), seconds("updated_at"), seconds("last_login_at")
	u.emailVerifiedAt, u.pending = seconds("email_verified_at"), truth("pending")
	if r.totp = fields["totp_secret"]; r.totp != "" {
		_, err := otp.ParseSecret(r.totp)
		if err != nil {
			wrong.add("totp_secret", "must be 16 to 64 bytes in base32")
		}
	}
	if err := wrong.err(); err != nil {
		return err.Error()
	}
	return ""
}

// setPassword sets the password or its hash. For a service user, which has neither, it sets the
// values that the columns of such a user hold.
func (r *importRow) setPassword(fields map[string]string, policy validate.Policy, wrong fieldErrors) {
	u := &r.user
	r.password, r.hash = fields["password"], fields["password_hash"]
	switch {
	case u.service:
		if u.email+r.password+r.hash+fields["email_verified_at"]+fields["totp_secret"] != "" {
			wrong.add("service", "is true, so email, email_verified_at, password, password_hash and totp_secret must be empty")
		}
		u.email, r.hash = serviceEmail+rand.Text(), serviceHash
	case r.password == "" && r.hash == "":
		wrong.add("password", "and password_hash are both empty")
	case r.password != "" && r.hash != "":
		wrong.add("password", "and password_hash are both given")
	case r.password != "":
		wrong.add("password", policy.Check(r.password, u.username, u.email))
	case !passhash.Known(r.hash):
		wrong.add("password_hash", "has an unknown format")
	}
}
