package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/alexedwards/scs/v2/memstore"

	"github.com/ganbauth/ganbauth"
)

// userSessions are scs sessions, made as LoadAndSave and a login make them.
type userSessions struct {
	*scs.SessionManager
	tokens ganbauth.TokenStore
}

func newUserSessions() *userSessions {
	sessions := scs.New()
	sessions.Store = memstore.NewWithCleanupInterval(0)
	return &userSessions{sessions, ganbauth.NewSCSStore(sessions)}
}

// add makes the session of one more user, who is connected if there is a token, and
// returns its cookie.
func (u *userSessions) add(user int, t *ganbauth.Token) (cookie string) {
	ctx := must(u.Load(context.Background(), ""))
	u.Put(ctx, "user", fmt.Sprint("user-", user))
	if t != nil {
		handle := kitKey + ";" + rand.Text()
		u.Put(ctx, "ganbauth.bank", handle)
		check(u.tokens.Save(ctx, handle, t))
	}
	cookie, _, err := u.Commit(ctx)
	check(err)
	return u.Cookie.Name + "=" + cookie
}

func issued(ends time.Time) *ganbauth.Token {
	return &ganbauth.Token{
		AccessToken: rand.Text() + rand.Text(), RefreshToken: rand.Text() + rand.Text(), TokenType: "Bearer", Scope: token.Scope,
		IDToken: token.IDToken, Subject: token.Subject, ExpiresAt: ends.UTC().Truncate(time.Second), IssuedAt: ends.Add(-time.Hour).UTC().Truncate(time.Second),
	}
}

// sessionMemory is the heap for each of n sessions, with and without a token.
func sessionMemory(n int, connected bool) float64 {
	before, _ := settled()
	sessions := newUserSessions()
	for i := range n {
		var t *ganbauth.Token
		if connected {
			t = issued(time.Now().Add(time.Hour))
		}
		sessions.add(i, t)
	}
	after, _ := settled()
	runtime.KeepAlive(sessions)
	return float64(after-before) / float64(n)
}

// leftovers are the heap that stays for each of n users who have refreshed, and for each
// login that was begun and never came back.
func leftovers(n int) (refreshed, begun float64) {
	config := bank.Config()
	config.HTTPClient = &http.Client{Transport: answering{}}
	store := ganbauth.NewMemoryStore()
	kit := must(ganbauth.New(must(ganbauth.NewConnector(bank.ClientID, bank.ClientSecret, ganbauth.AuthBasic, config)), nil, ganbauth.Options{
		RedirectURI: app + "/callback", Scopes: []string{"private:account", "offline_access"}, Logger: discardLog, Store: store,
		Key: func(r *http.Request) (string, error) { return r.Header.Get("User"), nil },
	}))
	ctx := context.Background()
	refreshAll := func() {
		for i := range n {
			user := fmt.Sprint("user-", i)
			check(kit.SetToken(ctx, user, &ganbauth.Token{AccessToken: token.AccessToken, RefreshToken: token.RefreshToken, Scope: token.Scope}))
			_ = must(kit.Token(ctx, user))
		}
	}
	refreshAll() // the tokens themselves stay
	before, _ := settled()
	refreshAll()
	after, _ := settled()
	refreshed = float64(after-before) / float64(n)

	h := kit.LoginHandler()
	before, _ = settled()
	for range n {
		r := request(nil, "/login")
		r.Header.Set("User", "user-1")
		r.Header.Set("Accept", "text/html")
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != http.StatusSeeOther {
			panic(w.Code)
		}
	}
	after, _ = settled()
	runtime.KeepAlive(kit)
	return refreshed, float64(after-before) / float64(n)
}
