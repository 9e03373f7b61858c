package main

// requireProof returns nil if the caller proves its identity: by the password or, if that
// is nil, by a token that a login made at most proofAge seconds ago. It always checks a
// password. Without one, it returns nil if the route requires no proof for these acts. The
// write that follows checks that the proof is still valid (see mayChange). requireProof
// returns errNotFresh, errWrongPassword, errUserNotFound or an error of matchesPassword.
func (s *server) requireProof(x *exchange, acts proof, password *string) error {
	if password == nil {
		acts &= x.proof
		age := s.wall().Unix() - x.who.issued
		x.renewed = acts&renewedOnly != 0
		if acts == 0 || x.who.fresh && -clockLeeway <= age && age <= proofAge {
			return nil
		}
		return errNotFresh
	}
	c, err := s.store.credentials(x.who.id)
	if err != nil {
		return err
	}
	ok, err := s.matchesPassword(x, x.who.id, c.hash, "", *password)
	if err == nil && !ok {
		err = errWrongPassword
	}
	x.stamp = &c.stamp
	return err
}

// A proofRequest is the body of an act that requires only proof.
type proofRequest struct {
	CurrentPassword *string `json:"current_password"`
}

// actsOf returns the acts of a change of a user, with a new password unless that
// is nil.
func actsOf(c *change, password *string) (acts proof) {
	add := func(act proof, does bool) {
		if does {
			acts |= act
		}
	}
	add(changeUsername, c.username != nil)
	add(changeEmail, c.email != nil)
	add(changePassword, password != nil)
	add(changeRole, c.role != nil)
	add(changeDisabled, c.disabled != nil)
	return acts
}

// matchesPassword reports whether a password is that of the user with this id and
// hash. For an unknown name, id is 0 and hash is empty, and it takes as long. Each
// verified password counts toward the limits. It returns errLimited, errStorage,
// passhash.ErrBusy or the context's error.
func (s *server) matchesPassword(x *exchange, id int64, hash, name, password string) (bool, error) {
	g, err := s.newGuess(x, id, hash, name)
	if err != nil {
		return false, err
	}
	// After newGuess: a guess that newGuess refuses costs no hash, so it must not use up
	// the passwords of its network.
	if err := s.allow(x, passwords); err != nil {
		return false, err
	}
	ok, err := s.hasher.Verify(x.r.Context(), network(x.address), hash, password)
	if err != nil {
		return false, err
	}
	return ok, g.finish(ok)
}
