package ganbauth

import "time"

// What the tests reach for behind the public names.

func VerifyIDToken(c *Connector, raw, accessToken, nonce string, now time.Time) error {
	claims, err := c.verifyIDToken(raw, accessToken, now)
	if err != nil {
		return err
	}
	return claims.checkLogin(nonce, 0, now)
}

func LocalPath(s string) (string, bool) { return localPath(s) }

func Seal(store TokenStore, keys ...[]byte) TokenStore {
	s, err := newSealer(keys...)
	if err != nil {
		panic(err)
	}
	return sealedStore{store, s}
}

// KeysHeld counts the keys that the kit remembers something about.
func KeysHeld(k *Kit) int {
	k.keeper.refreshes.mu.Lock()
	defer k.keeper.refreshes.mu.Unlock()
	k.keeper.gate.mu.Lock()
	defer k.keeper.gate.mu.Unlock()
	k.keeper.coolDowns.mu.Lock()
	defer k.keeper.coolDowns.mu.Unlock()
	return len(k.keeper.refreshes.m) + len(k.keeper.gate.m) + len(k.keeper.coolDowns.m)
}
