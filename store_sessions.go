package main

import (
	"context"
	"errors"
)

// maxSessions is how many sessions a user can have; past it the oldest ends.
const maxSessions = 100

// A session is one login of a user.
type session struct {
	id          int64
	userID      int64
	createdAt   int64
	lastUsedAt  int64
	expiresAt   int64
	address     string // of the client, at the login or the last refresh
	userAgent   string
	generation  int64
	refreshHash []byte
	rotatedAt   int64
}

// sessionColumns and (*session).columns are the one list of a session's columns, in step.
const sessionColumns = `
	session.id,
	session.user_id,
	session.created_at,
	session.last_used_at,
	session.expires_at,
	session.address,
	session.user_agent,
	session.generation,
	session.refresh_hash,
	session.rotated_at`

func (x *session) columns(more ...any) []any {
	return append([]any{
		&x.id,
		&x.userID,
		&x.createdAt,
		&x.lastUsedAt,
		&x.expiresAt,
		&x.address,
		&x.userAgent,
		&x.generation,
		&x.refreshHash,
		&x.rotatedAt,
	}, more...)
}

// addSession starts a session of a user whose password was just verified
// against hash, gives it its id, and returns the key to sign its token. It ends
// the oldest of the user's sessions past maxSessions. Where newHash is not empty
// it replaces the hash, which moves no version: a client sees nothing of it. A
// password or a state of the user that has changed since hash was read is
// errCredentials.
func (s *store) addSession(ctx context.Context, x *session, hash, newHash string) (key keyRow, err error) {
	if newHash == "" {
		newHash = hash
	}
	err = s.write(ctx,
		statement{
			query: `
				UPDATE user SET last_login_at = ?2, password_hash = ?4
				WHERE id = ?1 AND password_hash = ?3 AND disabled = 0`,
			args: []any{x.userID, x.createdAt, hash, newHash},
			none: errCredentials,
		},
		statement{
			query: `
				INSERT INTO session (user_id, created_at, last_used_at, expires_at, address, user_agent, refresh_hash, rotated_at)
				VALUES (?1, ?2, ?2, ?3, ?4, ?5, ?6, ?2)
				RETURNING id`,
			args: []any{x.userID, x.createdAt, x.expiresAt, x.address, x.userAgent, x.refreshHash},
			into: []any{&x.id},
		},
		event{at: x.createdAt, kind: loggedIn, actorID: x.userID, userID: x.userID, sessionID: justMade, address: x.address}.statement(),
		statement{
			query: `
				DELETE FROM session WHERE user_id = ?1 AND id <= (
					SELECT id FROM session WHERE user_id = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)`,
			args: []any{x.userID, maxSessions},
		},
		statement{
			query: selectNewestKey,
			into:  []any{&key.kid, &key.secret},
		})
	return key, err
}

// principal returns the user of a session and when the session was last used,
// or errSessionEnded where the session is over or its user is gone or disabled.
// A key of the database that is retired and past its time is errBadToken; kid
// is empty for a key of the configuration.
func (s *store) principal(sid int64, kid string, now int64) (u user, lastUsedAt int64, err error) {
	var keyGood bool
	err = s.read(`SELECT`+userColumns+`, session.last_used_at,
			?3 = '' OR EXISTS (SELECT 1 FROM signing_key WHERE kid = ?3 AND `+keyIsGood+`)
		FROM session JOIN user ON user.id = session.user_id
		WHERE session.id = ?1 AND session.expires_at > ?2 AND user.disabled = 0`,
		errSessionEnded, u.columns(&lastUsedAt, &keyGood), sid, now, kid)
	if err == nil && !keyGood {
		err = errBadToken
	}
	return u, lastUsedAt, err
}

// touchEvery is how long a session's last use may go unwritten, in seconds: a
// read must not cost a write.
const touchEvery = 60

// touch notes, without waiting, that a session is used.
func (s *store) touch(sid, now int64) {
	s.writeLater(statement{
		query: `UPDATE session SET last_used_at = ?2 WHERE id = ?1 AND last_used_at <= ?2 - ?3`,
		args:  []any{sid, now, touchEvery},
	})
}

// session returns a session, or errSessionEnded.
func (s *store) session(sid int64) (x session, err error) {
	err = s.read(`SELECT`+sessionColumns+` FROM session WHERE id = ?`, errSessionEnded, x.columns(), sid)
	return x, err
}

// sessionsOf calls f for each live session of a user, the oldest first.
func (s *store) sessionsOf(ctx context.Context, userID, now int64, f func(*session)) error {
	var x session
	return s.eachRow(ctx, `SELECT`+sessionColumns+` FROM session WHERE user_id = ? AND expires_at > ? ORDER BY id`,
		x.columns(), func() { f(&x) }, userID, now)
}

// rotate puts next in the place of the live refresh token of a session, which
// must have the given generation and hash, and returns the key to sign its
// access token. x brings the new hash and the times and client of now; it comes
// back with the session's user. Where the session is over, or another token is
// live, it is errNotApplied.
func (s *store) rotate(ctx context.Context, x *session, hash []byte, now int64) (key keyRow, err error) {
	err = s.write(ctx,
		statement{
			query: `
				UPDATE session SET
					generation = generation + 1,
					refresh_hash = ?4,
					rotated_at = ?5,
					last_used_at = ?5,
					expires_at = ?6,
					address = ?7,
					user_agent = ?8
				WHERE id = ?1 AND generation = ?2 AND refresh_hash = ?3 AND expires_at > ?5
					AND EXISTS (SELECT 1 FROM user WHERE user.id = session.user_id AND user.disabled = 0)
				RETURNING user_id`,
			args: []any{x.id, x.generation - 1, hash, x.refreshHash, now, x.expiresAt, x.address, x.userAgent},
			into: []any{&x.userID},
			none: errNotApplied,
		},
		statement{
			query: selectNewestKey,
			into:  []any{&key.kid, &key.secret},
		})
	return key, err
}

// endSession ends a session for by, or returns errSessionEnded,
// errForbidden or, where the user has no such session, errSessionNotFound.
func (s *store) endSession(ctx context.Context, by caller, userID, sid, now int64) error {
	err := s.write(ctx,
		statement{
			query: `DELETE FROM session WHERE user_id = ?1 AND id = ?3 AND ` + mayChange,
			args:  []any{userID, by.session, sid},
			none:  errNotApplied,
		},
		event{at: now, kind: sessionEnded, userID: userID, sessionID: sid}.by(by))
	if errors.Is(err, errNotApplied) {
		if err := s.mayNot(by, userID); err != nil {
			return err
		}
		return errSessionNotFound
	}
	return err
}

// endSessions ends every session of a user for by. That there is none is fine.
func (s *store) endSessions(ctx context.Context, by caller, userID, now int64) error {
	err := s.write(ctx,
		statement{
			query: `DELETE FROM session WHERE user_id = ?1 AND ` + mayChange,
			args:  []any{userID, by.session},
			none:  errNotApplied,
		},
		event{at: now, kind: sessionsEnded, userID: userID}.by(by))
	if errors.Is(err, errNotApplied) {
		return s.mayNot(by, userID)
	}
	return err
}

// endReused ends a session of a user whose refresh token came back, from an
// address. That it has ended already is fine.
func (s *store) endReused(ctx context.Context, userID, sid int64, address string, now int64) error {
	err := s.write(ctx,
		statement{
			query: `DELETE FROM session WHERE id = ?`,
			args:  []any{sid},
			none:  errNotApplied,
		},
		event{at: now, kind: tokenReused, userID: userID, sessionID: sid, address: address}.statement())
	if errors.Is(err, errNotApplied) {
		err = nil
	}
	return err
}

// sweepSize is how many sessions one sweep looks at.
const sweepSize = 1000

// sweep deletes what is over among the sweepSize sessions after an id, and the
// keys past their time. It returns where to go on, 0 at the end. By id and in
// small steps, it needs no index that each refresh would have to move.
func (s *store) sweep(ctx context.Context, after, now int64) (next int64, err error) {
	var n, over, oldKeys int
	err = s.read(`
		SELECT count(*), coalesce(max(id), 0), count(*) FILTER (WHERE expires_at <= ?2),
			(SELECT count(*) FROM signing_key WHERE NOT `+keyIsGood+`)
		FROM (SELECT id, expires_at FROM session WHERE id > ?1 ORDER BY id LIMIT ?3)`,
		errStorage, []any{&n, &next, &over, &oldKeys}, after, now, sweepSize)
	if err == nil && over > 0 {
		err = s.write(ctx, statement{
			query: `DELETE FROM session WHERE id > ?1 AND id <= ?2 AND expires_at <= ?3`,
			args:  []any{after, next, now},
		})
	}
	if err == nil && oldKeys > 0 {
		err = s.write(ctx, statement{
			query: `DELETE FROM signing_key WHERE id > ?1 AND NOT ` + keyIsGood,
			args:  []any{0, now},
		})
	}
	if n < sweepSize {
		next = 0
	}
	return next, err
}

// A keyRow is a row of signing_key: a key's name and what makes its tokens.
type keyRow struct {
	kid    string
	secret []byte
}

// keyIsGood is the condition that tokens of a key are good at ?2.
const keyIsGood = `(retired_at = 0 OR retired_at + token_ttl > ?2)`

// selectNewestKey selects the key that signs now. A token is signed under the key
// that is read with its session: a key rotated elsewhere signs from then on.
const selectNewestKey = `SELECT kid, secret FROM signing_key WHERE retired_at = 0 ORDER BY id DESC LIMIT 1`

// A signingKeyInfo is what may be shown of a signing key.
type signingKeyInfo struct {
	kid       string
	createdAt int64
	retiredAt int64 // 0: it signs
	goodUntil int64 // for its last token; 0: it signs
}

// signingKeys returns the keys in the database, the newest first.
func (s *store) signingKeys(ctx context.Context) (keys []signingKeyInfo, err error) {
	var k signingKeyInfo
	err = s.eachRow(ctx, `
		SELECT kid, created_at, retired_at, iif(retired_at = 0, 0, retired_at + token_ttl)
		FROM signing_key ORDER BY id DESC`,
		[]any{&k.kid, &k.createdAt, &k.retiredAt, &k.goodUntil},
		func() { keys = append(keys, k) })
	return keys, err
}

// newestKey returns the database's key that signs; its kid is empty where there
// is none, because the configuration has one.
func (s *store) newestKey() (key keyRow, err error) {
	err = s.read(selectNewestKey, errNoKey, []any{&key.kid, &key.secret})
	if errors.Is(err, errNoKey) {
		err = nil
	}
	return key, err
}

// keySecret returns the secret of a key that is not past its time, or errNoKey.
func (s *store) keySecret(kid string, now int64) (secret []byte, err error) {
	err = s.read(`SELECT secret FROM signing_key WHERE kid = ?1 AND `+keyIsGood,
		errNoKey, []any{&secret}, kid, now)
	return secret, err
}

var errNoKey = errors.New("no signing key")

// ensureKey adds key as the signing key unless there is one, and notes that
// tokens of ttl seconds are signed from now on.
func (s *store) ensureKey(ctx context.Context, key keyRow, ttl, now int64) error {
	var one int
	err := s.read(`SELECT 1 FROM signing_key WHERE retired_at = 0 AND token_ttl >= ?`, errNoKey, []any{&one}, ttl)
	if !errors.Is(err, errNoKey) {
		return err
	}
	return s.write(ctx,
		statement{
			query: `
				INSERT INTO signing_key (kid, secret, created_at)
				SELECT ?1, ?2, ?3 WHERE NOT EXISTS (SELECT 1 FROM signing_key WHERE retired_at = 0)`,
			args: []any{key.kid, key.secret, now},
		},
		statement{
			query: `UPDATE signing_key SET token_ttl = ?1 WHERE retired_at = 0 AND token_ttl < ?1`,
			args:  []any{ttl},
		})
}

// retireKeys retires every signing key, because the configuration has one.
func (s *store) retireKeys(ctx context.Context, now int64) error {
	key, err := s.newestKey()
	if err != nil || key.kid == "" {
		return err
	}
	return s.write(ctx, statement{
		query: `UPDATE signing_key SET retired_at = ? WHERE retired_at = 0`,
		args:  []any{now},
	})
}

// rotateKey makes key the one that signs and retires the others.
func (s *store) rotateKey(ctx context.Context, key keyRow, now int64) error {
	return s.write(ctx,
		statement{
			query: `
				INSERT INTO signing_key (kid, secret, created_at, token_ttl)
				SELECT ?1, ?2, ?3, coalesce(max(token_ttl), 0) FROM signing_key`,
			args: []any{key.kid, key.secret, now},
		},
		statement{
			query: `UPDATE signing_key SET retired_at = ?2 WHERE kid <> ?1 AND retired_at = 0`,
			args:  []any{key.kid, now},
		},
		event{at: now, kind: keyRotated, changes: "kid=" + key.kid}.by(console))
}

// secret returns the named secret of this database; the first to ask gives it
// the value fresh.
func (s *store) secret(ctx context.Context, name string, fresh []byte) (value []byte, err error) {
	const query = `SELECT value FROM secret WHERE name = ?`
	if err = s.read(query, errNoKey, []any{&value}, name); !errors.Is(err, errNoKey) {
		return value, err
	}
	err = s.write(ctx, statement{
		query: `INSERT INTO secret (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING`,
		args:  []any{name, fresh},
	})
	if err == nil {
		err = s.read(query, errStorage, []any{&value}, name)
	}
	return value, err
}
