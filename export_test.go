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
