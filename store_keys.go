package main

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"

	"userd/internal/apikey"
)

const (
	// maxUserKeys is the largest number of valid keys of a user.
	maxUserKeys = 50
	// keepExpiredKeys is how long the row of an expired key stays, in seconds: its holder
	// gets errExpiredKey, which says why, instead of errBadToken. At most the newest
	// maxUserKeys expired keys of a user stay.
	keepExpiredKeys = 30 * 24 * 60 * 60
	// touchKeyEvery is how often a use of a key is recorded at most, in seconds.
	touchKeyEvery = 60 * 60
)

// An apiKey is one row of the table user_key, without the hash.
type apiKey struct {
	id           int64
	userID       int64
	name         string
	prefix       string // the first characters of the key, for people
	scope        keyScope
	createdAt    int64
	expiresAt    int64  // 0: never
	lastUsedAt   int64  // 0: never
	lastAddress  string // of the client, at lastUsedAt
	factorExempt bool   // from REQUIRE_FACTOR: the user has a second factor or is a service user; only userOfKey sets it
}

// keyColumns and (*apiKey).columns list the columns in the same order.
const keyColumns = `
	user_key.id,
	user_key.user_id,
	user_key.name,
	user_key.prefix,
	user_key.scope,
	user_key.created_at,
	user_key.expires_at,
	user_key.last_used_at,
	user_key.last_address`

func (k *apiKey) columns() []any {
	return []any{
		&k.id,
		&k.userID,
		&k.name,
		&k.prefix,
		(*string)(&k.scope),
		&k.createdAt,
		&k.expiresAt,
		&k.lastUsedAt,
		&k.lastAddress,
	}
}

// keyIsLive is the condition that a key is not expired at @now.
const keyIsLive = `(user_key.expires_at = 0 OR user_key.expires_at > @now)`

// addKey stores the hash of an API key for a caller, and sets k.id. The statements in then
// belong to the same write. Only the command line makes a key that never expires, or one with
// adminScope, and the latter only for an admin. addKey returns errKeyScope for any other key
// with adminScope, or if the caller is a key; errKeyLimit if maxUserKeys keys of the user are
// valid; errUserNotFound, errUserDisabled, errPendingApproval, or an error of
// authorizationError.
func (s *store) addKey(ctx context.Context, by caller, k *apiKey, hash []byte, then ...statement) error {
	values := by.with(args{
		{"id", k.userID}, {"name", k.name}, {"prefix", k.prefix}, {"hash", hash}, {"scope", string(k.scope)},
		{"now", k.createdAt}, {"expires", k.expiresAt}, {"most", maxUserKeys},
	})
	record := event{at: k.createdAt, kind: keyCreated, userID: k.userID, changes: "scope=" + string(k.scope)}.by(by)
	record.Query = insertNewKeyEvent
	err := s.write(ctx, append([]statement{
		{
			Query: `
				INSERT INTO user_key (user_id, name, prefix, hash, scope, created_at, expires_at)
				SELECT user.id, @name, @prefix, @hash, @scope, @now, @expires FROM user
				WHERE user.id = @id AND user.disabled = 0 AND user.pending = 0
					AND (@scope <> 'admin' AND @expires <> 0 OR @caller = 'console')
					AND (@scope <> 'admin' OR user.role = 'admin')
					AND (SELECT count(*) FROM user_key WHERE user_key.user_id = @id AND ` + keyIsLive + `) < @most
					AND @caller <> 'apiKey' AND ` + mayChange + `
				RETURNING id`,
			Args:   values,
			Scan:   []any{&k.id},
			IfNone: errNotApplied,
		},
		{
			Query: `
				DELETE FROM user_key WHERE user_id = @id AND NOT ` + keyIsLive + ` AND id <= (
					SELECT id FROM user_key WHERE user_id = @id AND NOT ` + keyIsLive + ` ORDER BY id DESC LIMIT 1 OFFSET @most)`,
			Args: values,
		},
		record,
	}, then...)...)
	if errors.Is(err, errNotApplied) {
		return s.keyNotAddedError(by, k)
	}
	return err
}

// keyNotAddedError returns why addKey did not apply.
func (s *store) keyNotAddedError(by caller, k *apiKey) error {
	if err := s.authorizationError(by, k.userID); err != nil {
		return err
	}
	u, err := s.user(k.userID)
	switch {
	case err != nil:
		return err
	case u.disabled:
		return errUserDisabled
	case u.pending:
		return errPendingApproval
	case by.kind == keyCaller, k.scope == adminScope && (by.kind != consoleCaller || u.role != admin):
		return errKeyScope
	}
	return errKeyLimit
}

// keysOf calls f for each key of a user, the oldest first. f must not keep its argument, which
// the next row overwrites.
func (s *store) keysOf(ctx context.Context, userID int64, f func(*apiKey)) error {
	var k apiKey
	return s.eachRow(ctx, `SELECT`+keyColumns+` FROM user_key WHERE user_id = ? ORDER BY id`, k.columns(), func() { f(&k) }, userID)
}

// userOfKey returns the user of a key, and the key without its name, prefix and last address. It
// returns errBadToken if the key does not exist or its user is disabled or pending, errExpiredKey,
// or errStorage. It does not look up a text whose form or checksum is wrong.
func (s *store) userOfKey(key string, now int64) (u user, k apiKey, err error) {
	if !apikey.Valid(key) {
		return u, k, errBadToken
	}
	err = s.read(`SELECT`+userColumns+`, user_key.id, user_key.scope, user_key.created_at, user_key.expires_at, user_key.last_used_at,
			user.service <> 0 OR EXISTS (SELECT 1 FROM user_totp WHERE user_totp.user_id = user.id)
		FROM user_key JOIN user ON user.id = user_key.user_id
		WHERE user_key.hash = ?1 AND user.disabled = 0 AND user.pending = 0`,
		errBadToken, u.columns(&k.id, (*string)(&k.scope), &k.createdAt, &k.expiresAt, &k.lastUsedAt, &k.factorExempt), apikey.Hash(key))
	if err == nil && k.expiresAt != 0 && k.expiresAt <= now {
		err = errExpiredKey
	}
	k.userID = u.id
	return u, k, err
}

// touchKey records that a client with this address has used a key. It does not wait for the
// write.
func (s *store) touchKey(id int64, address string, now int64) {
	s.writer.WriteLater(statement{
		Query: `UPDATE user_key SET last_used_at = @now, last_address = @address WHERE id = @id AND last_used_at <= @now - @every`,
		Args:  args{{"id", id}, {"address", address}, {"now", now}, {"every", touchKeyEvery}},
	})
}

// revokeKey deletes a key of a user for a caller, unless the caller is a key. The statements in
// then belong to the same write. It returns errKeyNotFound if the user does not have this key, or
// an error of authorizationError.
func (s *store) revokeKey(ctx context.Context, by caller, userID, id, now int64, then ...statement) error {
	err := s.write(ctx, append([]statement{
		{
			Query:  `DELETE FROM user_key WHERE user_id = @id AND id = @revoked AND @caller <> 'apiKey' AND ` + mayChange,
			Args:   by.with(args{{"id", userID}, {"revoked", id}}),
			IfNone: errNotApplied,
		},
		event{at: now, kind: keyRevoked, userID: userID, changes: fmt.Sprintf("key=%d", id)}.by(by),
	}, then...)...)
	if errors.Is(err, errNotApplied) {
		return cmp.Or[error](s.authorizationError(by, userID), errKeyNotFound)
	}
	return err
}

// countKeys returns the number of API keys, expired ones too.
func (s *store) countKeys(ctx context.Context) (n int64, err error) {
	err = s.onNewConnection(func(db *sql.DB) error {
		return db.QueryRowContext(ctx, `SELECT count(*) FROM user_key`).Scan(&n)
	})
	return n, err
}

// sweepKeys deletes at most sweepSize of the keys that expired keepExpiredKeys ago or earlier.
func (s *store) sweepKeys(ctx context.Context, now int64) error {
	const old = `expires_at > 0 AND expires_at <= `
	var found bool
	err := s.read(`SELECT EXISTS (SELECT 1 FROM user_key WHERE `+old+`?)`, errStorage, []any{&found}, now-keepExpiredKeys)
	if err != nil || !found {
		return err
	}
	return s.write(ctx, statement{
		Query: `DELETE FROM user_key WHERE id IN (SELECT id FROM user_key WHERE ` + old + `@before LIMIT @most)`,
		Args:  args{{"before", now - keepExpiredKeys}, {"most", sweepSize}},
	})
}

// A keyRow is the id and the secret of a row of signing_key.
type keyRow struct {
	kid    string
	secret []byte
}

// keyIsValid is the condition that tokens of a key can still be valid at the time ?2.
const keyIsValid = `(retired_at = 0 OR ` + keyEnd + ` > ?2)`

// keyEnd is when the last token of a retired key expires: after 24 hours at most
// (maxAccessTTL), also if an earlier build gave tokens a longer life.
const keyEnd = `retired_at + min(token_ttl, 86400)`

// selectNewestKey selects the key that signs.
const selectNewestKey = `SELECT kid, secret FROM signing_key WHERE retired_at = 0 ORDER BY id DESC LIMIT 1`

// selectNewest returns a statement that reads the key that signs. Each write that
// starts or refreshes a session ends with it, so that a new key signs as soon as
// another process has rotated the keys.
func (k *keyRow) selectNewest() statement {
	return statement{Query: selectNewestKey, Scan: []any{&k.kid, &k.secret}}
}

// A signingKeyInfo is a signing key without its secret.
type signingKeyInfo struct {
	kid       string
	createdAt int64
	retiredAt int64 // 0: the key signs
	goodUntil int64 // when its last token expires; 0: the key signs
}

// signingKeys returns the database's signing keys, the newest first.
func (s *store) signingKeys(ctx context.Context) (keys []signingKeyInfo, err error) {
	var k signingKeyInfo
	err = s.eachRow(ctx, `
		SELECT kid, created_at, retired_at, iif(retired_at = 0, 0, `+keyEnd+`)
		FROM signing_key ORDER BY id DESC`,
		[]any{&k.kid, &k.createdAt, &k.retiredAt, &k.goodUntil},
		func() { keys = append(keys, k) })
	return keys, err
}

// newestKey returns the key of the database that signs, or the zero key if none does.
func (s *store) newestKey() (key keyRow, err error) {
	err = s.read(selectNewestKey, nil, []any{&key.kid, &key.secret})
	return key, err
}

// keySecret returns the secret of a key whose tokens can still be valid, or
// errNoKey.
func (s *store) keySecret(kid string, now int64) (secret []byte, err error) {
	err = s.read(`SELECT secret FROM signing_key WHERE kid = ?1 AND `+keyIsValid, errNoKey, []any{&secret}, kid, now)
	return secret, err
}

var errNoKey = errors.New("no signing key")

// ensureKey adds key as the signing key if the database has none, and records that the
// signing key signs tokens that live for ttl seconds.
func (s *store) ensureKey(ctx context.Context, key keyRow, ttl, now int64) error {
	var done bool
	err := s.read(`SELECT EXISTS (SELECT 1 FROM signing_key WHERE retired_at = 0 AND token_ttl >= ?)`, errStorage, []any{&done}, ttl)
	if err != nil || done {
		return err
	}
	return s.write(ctx,
		statement{
			Query: `
				INSERT INTO signing_key (kid, secret, created_at)
				SELECT @kid, @secret, @now WHERE NOT EXISTS (SELECT 1 FROM signing_key WHERE retired_at = 0)`,
			Args: args{{"kid", key.kid}, {"secret", key.secret}, {"now", now}},
		},
		statement{
			Query: `UPDATE signing_key SET token_ttl = @ttl WHERE retired_at = 0 AND token_ttl < @ttl`,
			Args:  args{{"ttl", ttl}},
		})
}

// retireKeys retires all keys of the database, because the configuration has one.
func (s *store) retireKeys(ctx context.Context, now int64) error {
	key, err := s.newestKey()
	if err != nil || key.kid == "" {
		return err
	}
	return s.write(ctx, statement{
		Query: `UPDATE signing_key SET retired_at = @now WHERE retired_at = 0`,
		Args:  args{{"now", now}},
	})
}

// rotateKey adds key, which signs from now on. It retires the others or, if end is
// true, deletes them, so that their tokens are no longer valid.
func (s *store) rotateKey(ctx context.Context, key keyRow, end bool, now int64) error {
	others := statement{
		Query: `UPDATE signing_key SET retired_at = @now WHERE kid <> @kid AND retired_at = 0`,
		Args:  args{{"kid", key.kid}, {"now", now}},
	}
	if end {
		others = statement{Query: `DELETE FROM signing_key WHERE kid <> @kid`, Args: args{{"kid", key.kid}}}
	}
	return s.write(ctx,
		statement{
			Query: `
				INSERT INTO signing_key (kid, secret, created_at, token_ttl)
				SELECT @kid, @secret, @now, coalesce(max(token_ttl), 0) FROM signing_key`,
			Args: args{{"kid", key.kid}, {"secret", key.secret}, {"now", now}},
		},
		others,
		event{at: now, kind: keyRotated, changes: "kid=" + key.kid}.by(console))
}

// rotateSecret replaces the named secret of the database, or adds it.
func (s *store) rotateSecret(ctx context.Context, name string, value []byte, now int64) error {
	return s.write(ctx,
		statement{
			Query: `INSERT INTO secret (name, value) VALUES (@name, @value) ON CONFLICT (name) DO UPDATE SET value = @value`,
			Args:  args{{"name", name}, {"value", value}},
		},
		event{at: now, kind: keyRotated, changes: "secret=" + name}.by(console))
}

// A signer says with which kind of key the servers of this database sign.
type signer struct {
	configured bool  // with JWT_SECRET_KEY
	since      int64 // 0: no server has started yet
}

// signer returns the signer, or the zero signer if no server has started yet.
func (s *store) signer() (v signer, err error) {
	err = s.read(`SELECT configured, since FROM signer WHERE id = 1`, nil, []any{&v.configured, &v.since})
	return v, err
}

// recordSigner records with which kind of key a starting server signs, and since when.
func (s *store) recordSigner(ctx context.Context, configured bool, now int64) error {
	last, err := s.signer()
	if err != nil || last.since > 0 && last.configured == configured {
		return err
	}
	return s.write(ctx, statement{
		Query: `
			INSERT INTO signer (id, configured, since) VALUES (1, @configured, @now)
			ON CONFLICT (id) DO UPDATE SET configured = @configured, since = @now`,
		Args: args{{"configured", configured}, {"now", now}},
	})
}

// secret returns the named secret of the database. If it does not exist, secret first
// stores fresh under the name.
func (s *store) secret(ctx context.Context, name string, fresh []byte) (value []byte, err error) {
	const query = `SELECT value FROM secret WHERE name = ?`
	if err = s.read(query, nil, []any{&value}, name); err != nil || value != nil {
		return value, err
	}
	err = s.write(ctx, statement{
		Query: `INSERT INTO secret (name, value) VALUES (@name, @value) ON CONFLICT DO NOTHING`,
		Args:  args{{"name", name}, {"value", fresh}},
	})
	if err == nil {
		err = s.read(query, errStorage, []any{&value}, name)
	}
	return value, err
}
