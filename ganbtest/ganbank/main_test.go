package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ganbauth/ganbauth"
	"github.com/ganbauth/ganbauth/ganbtest"
)

const callback = "https://app.example/bank/callback"

// command builds the program, once.
func command(t *testing.T) string {
	t.Helper()
	build.Do(func() {
		if built, buildErr = os.MkdirTemp("", "ganbank"); buildErr != nil {
			return
		}
		out, err := exec.Command("go", "build", "-o", filepath.Join(built, "ganbank"), ".").CombinedOutput()
		if err != nil {
			buildErr = fmt.Errorf("%w: %s", err, out)
		}
	})
	require.NoError(t, buildErr)
	return filepath.Join(built, "ganbank")
}

var (
	build    sync.Once
	built    string
	buildErr error
)

func TestMain(m *testing.M) {
	code := m.Run()
	_ = os.RemoveAll(built)
	os.Exit(code)
}

// program is a bank that runs as a process of its own, and a client that knows nothing of
// ganbauth.
type program struct {
	t      *testing.T
	cmd    *exec.Cmd
	url    string
	out    *bytes.Buffer // complete when the process has ended
	read   chan struct{}
	client *http.Client
}

// start runs the command on a free port, and waits for the line that names it.
func start(t *testing.T, args ...string) *program {
	t.Helper()
	p := &program{t: t, out: &bytes.Buffer{}, read: make(chan struct{})}
	p.cmd = exec.Command(command(t), append([]string{"-addr", "127.0.0.1:0"}, args...)...)
	p.cmd.Env = append(os.Environ(), "GANB_CLIENT_SECRET=very secret words")
	reader, writer, err := os.Pipe()
	require.NoError(t, err)
	p.cmd.Stdout, p.cmd.Stderr = writer, writer
	require.NoError(t, p.cmd.Start())
	writer.Close()
	t.Cleanup(func() { p.cmd.Process.Kill(); p.cmd.Wait() })
	lines := bufio.NewReader(io.TeeReader(reader, p.out))
	line, err := lines.ReadString('\n')
	require.NoError(t, err)
	p.url = strings.TrimSuffix(regexp.MustCompile(`http://\S+`).FindString(line), "/")
	require.NotEmpty(t, p.url, line)
	go func() {
		defer close(p.read)
		_, _ = io.Copy(io.Discard, lines)
	}()
	p.client = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return p
}

// do sends a request and returns the answer with its body read.
func (p *program) do(method, target string, form url.Values, header ...string) (*http.Response, string) {
	p.t.Helper()
	if strings.HasPrefix(target, "/") {
		target = p.url + target
	}
	req, err := http.NewRequest(method, target, strings.NewReader(form.Encode()))
	require.NoError(p.t, err)
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := p.client.Do(req)
	require.NoError(p.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(p.t, err)
	return resp, string(body)
}

func (p *program) json(path string, v any) {
	p.t.Helper()
	resp, body := p.do("GET", path, nil)
	require.Equal(p.t, 200, resp.StatusCode)
	require.NoError(p.t, json.Unmarshal([]byte(body), v))
}

// token sends a token request as the client.
func (p *program) token(form url.Values) (status int, answer map[string]any) {
	p.t.Helper()
	form.Set("client_id", "my-client")
	form.Set("client_secret", "very secret words")
	resp, body := p.do("POST", p.conf()["AUTH_BASE_URL"]+p.conf()["TOKEN_PATH"], form)
	require.NoError(p.t, json.Unmarshal([]byte(body), &answer), body)
	return resp.StatusCode, answer
}

func (p *program) conf() (conf map[string]string) {
	p.json("/conf.json", &conf)
	return conf
}

func (p *program) authorization() string {
	conf := p.conf()
	return conf["AUTH_BASE_URL"] + conf["AUTH_PATH"] + "?" + url.Values{
		"response_type": {"code"}, "client_id": {"my-client"}, "scope": {"openid offline_access private:account"}, "redirect_uri": {callback},
		"state": {"the state"}, "nonce": {"the nonce"},
	}.Encode()
}

// A whole life of a connection, as a program in another language would live it, and
// nothing of it is shown.
func TestWholeLogin(t *testing.T) {
	p := start(t, "-client-id", "my-client", "-auth-method", "post", "-redirect-uri", callback, "-redirect-uri", "https://app.example/other",
		"-application", "Household Books", "-subject", "user-7")
	resp, _ := p.do("GET", "/healthz", nil)
	require.Equal(t, 200, resp.StatusCode)

	// The consent page, and its form.
	resp, page := p.do("GET", p.authorization(), nil, "Accept-Language", "en")
	require.Equal(t, 200, resp.StatusCode)
	require.Contains(t, page, "Household Books asks for access")
	authorization, err := url.Parse(p.authorization())
	require.NoError(t, err)
	resp, _ = p.do("POST", p.authorization(), url.Values{
		"query": {authorization.RawQuery}, "decision": {"approve"}, "scope": {"openid", "offline_access", "private:account"},
	})
	require.Equal(t, 302, resp.StatusCode)
	back, err := resp.Location()
	require.NoError(t, err)
	require.Equal(t, "the state", back.Query().Get("state"))
	code := back.Query().Get("code")
	require.NotEmpty(t, code)

	// The tokens, the API, a refresh, and its second use.
	status, first := p.token(url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {callback}})
	require.Equal(t, 200, status, first)
	accounts := func(token any) int {
		resp, _ := p.do("GET", "/ganb/api/personal/v1/accounts", nil, "x-access-token", token.(string))
		return resp.StatusCode
	}
	require.Equal(t, 200, accounts(first["access_token"]))
	refresh := func(token any) (int, map[string]any) {
		return p.token(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token.(string)}})
	}
	status, second := refresh(first["refresh_token"])
	require.Equal(t, 200, status)
	status, answer := refresh(first["refresh_token"])
	require.Equal(t, 400, status)
	require.Equal(t, "invalid_grant", answer["error"])
	require.Equal(t, 401, accounts(second["access_token"]), "the grant is over")

	var state state
	p.json("/state.json", &state)
	require.Equal(t, 1, state.Reuses)
	require.Equal(t, "user-7", state.Grants[0].Subject)
	require.Equal(t, "refresh token reused", state.Grants[0].Ended)
	require.Equal(t, ganbtest.API, state.Requests[0].Endpoint)
	require.Equal(t, 401, state.Requests[0].Status)

	_, console := p.do("GET", "/", nil)
	require.Contains(t, console, "user-7")
	require.Contains(t, console, "refresh token reused")
	_, raw := p.do("GET", "/state.json", nil)
	_, conf := p.do("GET", "/conf.json", nil)
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	<-p.read
	require.NoError(t, p.cmd.Wait())
	shown := console + raw + conf + p.out.String()
	require.Contains(t, p.out.String(), "my-client")
	require.Contains(t, p.out.String(), "The bank is closed.")
	for name, secret := range map[string]any{
		"secret": "very secret words", "code": code, "state": "the state", "nonce": "the nonce", "access token": first["access_token"],
		"refresh token": first["refresh_token"], "ID token": first["id_token"], "next access token": second["access_token"], "next refresh token": second["refresh_token"],
	} {
		require.NotEmpty(t, secret, name)
		require.False(t, strings.Contains(shown, secret.(string)), name)
	}
}

// The conf.json that is printed is one that ganbauth reads, and the box approves by
// itself for end-to-end tests.
func TestConfThatIsPrinted(t *testing.T) {
	p := start(t, "-auto-approve", "-subject", "", "-refresh", "keep")
	require.NoError(t, p.cmd.Process.Signal(syscall.Signal(0)))
	var conf map[string]string
	p.json("/conf.json", &conf)
	file := filepath.Join(t.TempDir(), "conf.json")
	data, err := json.Marshal(conf)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, data, 0o600))
	cfg, err := ganbauth.LoadConfig(file)
	require.NoError(t, err)
	c, err := ganbauth.NewConnector("ganbank", "very secret words", ganbauth.AuthBasic, cfg)
	require.NoError(t, err)
	authURL, nonce, err := c.OpenIDAuthorization("session", "openid offline_access", callback)
	require.NoError(t, err)
	resp, _ := p.do("GET", authURL, nil)
	back, err := resp.Location()
	require.NoError(t, err)
	token, err := c.OpenIDToken(t.Context(), callback, back.Query().Get("code"), nonce)
	require.NoError(t, err)
	require.NotEqual(t, "sandbox-user", token.Subject)
	for range 2 {
		next, err := c.RefreshTokens(t.Context(), token.RefreshToken)
		require.NoError(t, err)
		require.Equal(t, token.RefreshToken, next.RefreshToken)
	}
	require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
	<-p.read
	require.NoError(t, p.cmd.Wait())
	printed := regexp.MustCompile(`(?s)\{.*\}`).FindString(p.out.String())
	require.JSONEq(t, string(data), printed)
}

// Faults are switched on and off, by a form as well as by a script, but not by another
// site.
func TestSwitches(t *testing.T) {
	p := start(t, "-auto-approve")
	set := func(fault, on string, header ...string) int {
		resp, _ := p.do("POST", "/faults", url.Values{"fault": {fault}, "on": {on}}, header...)
		return resp.StatusCode
	}
	isOn := func() (on []string) {
		var s state
		p.json("/state.json", &s)
		for _, f := range s.Faults {
			if f.On {
				on = append(on, f.ID)
			}
		}
		return on
	}
	api := func() int {
		resp, _ := p.do("GET", "/ganb/api/personal/v1/accounts", nil)
		return resp.StatusCode
	}
	require.Equal(t, 401, api())
	for fault, want := range map[string]int{"maintenance": 503, "api-500": 500} {
		for range 2 { // twice is once
			require.Equal(t, 303, set(fault, "true"))
			require.Equal(t, want, api())
			require.Equal(t, []string{fault}, isOn())
		}
		_, page := p.do("GET", "/", nil)
		require.Equal(t, 1, strings.Count(page, `class="on"`))
		for range 2 {
			require.Equal(t, 303, set(fault, "false"))
			require.Equal(t, 401, api())
			require.Empty(t, isOn())
		}
	}
	require.Equal(t, 303, set("rate", "true"))
	require.Contains(t, []int{api(), api(), api()}, 429)
	require.Equal(t, 303, set("rate", "false"))

	require.Equal(t, 400, set("no such fault", "true"))
	require.Equal(t, 400, set("api-500", "perhaps"))
	require.Equal(t, 403, set("api-500", "true", "Sec-Fetch-Site", "cross-site"))
	require.Equal(t, 303, set("api-500", "true", "Sec-Fetch-Site", "same-origin"))
	require.Equal(t, []string{"api-500"}, isOn())

	resp, _ := p.do("POST", "/actions", url.Values{"action": {"nothing"}})
	require.Equal(t, 400, resp.StatusCode)
	resp, _ = p.do("POST", "/actions", url.Values{"action": {"revoke"}}, "Sec-Fetch-Site", "cross-site")
	require.Equal(t, 403, resp.StatusCode)
	p.do("GET", strings.Replace(p.authorization(), "my-client", "ganbank", 1), nil)
	for _, action := range []string{"expire", "revoke"} {
		resp, _ = p.do("POST", "/actions", url.Values{"action": {action}})
		require.Equal(t, 303, resp.StatusCode)
	}
	var s state
	p.json("/state.json", &s)
	require.Equal(t, "revoked", s.Grants[0].Ended)
}

// A bank that is closed says so, whether a flag or a switch has closed it.
func TestClosed(t *testing.T) {
	p := start(t, "-maintenance", "0s/1h")
	var s state
	p.json("/state.json", &s)
	require.WithinDuration(t, time.Now().Add(time.Hour), s.ClosedUntil, 5*time.Minute)
	_, page := p.do("GET", "/", nil)
	require.Contains(t, page, "Closed until")

	p = start(t)
	s = state{}
	p.json("/state.json", &s)
	require.Zero(t, s.ClosedUntil)
	_, page = p.do("GET", "/", nil)
	require.NotContains(t, page, "Closed until")
	p.do("POST", "/faults", url.Values{"fault": {"maintenance"}, "on": {"true"}})
	_, page = p.do("GET", "/", nil)
	require.Contains(t, page, "Closed until")
}

// Every fault has an ID of its own, and all of them can be on at once, and off again.
func TestFaults(t *testing.T) {
	c := newConsole(ganbtest.Options{InProcess: true})
	for _, f := range faults {
		c.set(f, true)
	}
	require.Len(t, c.on, len(faults))
	for _, f := range faults {
		c.set(f, false)
	}
	require.Empty(t, c.on)
	require.NotEmpty(t, c.bank.Token("openid", "offline_access").AccessToken, "all is well")
}

// A request that is under way when the signal comes is answered.
func TestShutdown(t *testing.T) {
	p := start(t, "-latency", "300ms", "-auto-approve")
	status := make(chan int)
	go func() {
		resp, err := http.Get(p.url + "/ganb/api/personal/v1/accounts")
		if err != nil {
			status <- 0
			return
		}
		resp.Body.Close()
		status <- resp.StatusCode
	}()
	var s state
	for len(s.Requests) == 0 {
		p.json("/state.json", &s)
	}
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	require.Equal(t, 401, <-status)
	<-p.read
	require.NoError(t, p.cmd.Wait())
}

func TestFlags(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	stderr := &bytes.Buffer{}
	s, err := parse([]string{
		"-addr", ":1", "-url", "https://bank.example/", "-client-id", "i", "-client-secret", "s", "-auth-method", "post", "-redirect-uri", "https://a/",
		"-redirect-uri", "https://b/", "-lifetime", "1m", "-refresh", "rotate", "-latency", "1s", "-rate", "2.5", "-count-refused",
		"-maintenance", "30s/2m", "-maintenance", "2026-11-29T02:00:00+09:00/6h/168h", "-auto-approve",
	}, now, stderr)
	require.NoError(t, err)
	sunday := time.Date(2026, 11, 28, 17, 0, 0, 0, time.UTC)
	require.True(t, s.bank.Maintenance[1].Start.Equal(sunday))
	require.True(t, s.bank.Maintenance[1].End.Equal(sunday.Add(6*time.Hour)))
	require.Equal(t, 168*time.Hour, s.bank.Maintenance[1].Every)
	s.bank.Maintenance = s.bank.Maintenance[:1]
	want := ganbtest.Options{
		ClientID: "i", ClientSecret: "s", AuthMethod: ganbauth.AuthPost, RedirectURI: "https://a/ https://b/", Subject: "sandbox-user",
		Lifetime: time.Minute, Latency: time.Second, RateLimit: ganbtest.RateLimit{PerSecond: 2.5, CountRefused: true},
		Maintenance:  []ganbtest.Window{{Start: now.Add(30 * time.Second), End: now.Add(150 * time.Second)}},
		KeepRequests: 1000,
	}
	require.True(t, reflect.DeepEqual(want, s.bank))
	require.Equal(t, [2]string{":1", "https://bank.example"}, [2]string{s.addr, s.url})

	t.Setenv("GANB_CLIENT_SECRET", "")
	s, err = parse(nil, now, stderr)
	require.NoError(t, err)
	require.Equal(t, defaultSecret, s.bank.ClientSecret)
	require.True(t, s.bank.Consent)
	require.True(t, s.bank.RevokeOnReuse)

	for args, says := range map[string]string{
		"-auth-method basics": "not one of the words", "-refresh twice": "not one of the words", "-maintenance 1h": "START/LENGTH",
		"-maintenance noon/1h": "neither a time nor a duration", "-maintenance 1h/long": "invalid duration", "-maintenance 1h/1h/often": "invalid duration",
		"-nothing": "not defined", "more": "unexpected argument",
	} {
		stderr.Reset()
		_, err := parse(strings.Fields(args), now, stderr)
		require.ErrorIs(t, err, errUsage, args)
		require.Contains(t, stderr.String(), says, args)
	}
}

func TestExitCodes(t *testing.T) {
	p := start(t)
	_, page := p.do("GET", "/", nil)
	require.Contains(t, page, "Nobody has connected an account yet")
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"-h"}, 0, "Usage of ganbank"},
		{[]string{"-rate", "many"}, 2, "invalid value"},
		{[]string{"-addr", strings.TrimPrefix(p.url, "http://")}, 1, "choose another address with -addr"},
	} {
		cmd := exec.Command(command(t), c.args...)
		cmd.Env = append(os.Environ(), "GANB_CLIENT_SECRET=very secret words")
		out, _ := cmd.CombinedOutput()
		require.Equal(t, c.code, cmd.ProcessState.ExitCode(), c.args)
		require.Contains(t, string(out), c.says)
		require.NotContains(t, string(out), "very secret words")
	}
}

// The address of the API that is printed is the one that answers.
func TestAPIAddressThatIsPrinted(t *testing.T) {
	p := start(t)
	resp, _ := p.do("GET", "/ganb/api/personal/v1/accounts", nil)
	require.Equal(t, 401, resp.StatusCode, "it asks for a token")
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	<-p.read
	require.Contains(t, p.out.String(), "Its API is below "+p.url+"/ganb/api/personal/v1\n")
}
