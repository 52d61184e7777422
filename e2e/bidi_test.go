package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
	"github.com/stretchr/testify/require"
)

// biDi speaks WebDriver BiDi (https://www.w3.org/TR/webdriver-bidi/). It asks for no
// events.
type biDi struct {
	conn *websocket.Conn
	last int // command
}

// newBiDi begins a session, and ends it, and the browser, with the test.
func newBiDi(t *testing.T, url string) *biDi {
	t.Helper()
	conn, _, err := websocket.Dial(t.Context(), url, nil)
	require.NoError(t, err)
	conn.SetReadLimit(1 << 24)
	b := &biDi{conn: conn}
	t.Cleanup(func() {
		if err := b.do("browser.close", nil, nil); err != nil {
			t.Error(err)
		}
		_ = conn.CloseNow()
	})
	require.NoError(t, b.do("session.new", map[string]any{
		"capabilities": map[string]any{"alwaysMatch": map[string]any{"acceptInsecureCerts": true}},
	}, nil))
	return b
}

// do sends a command and reads its result.
func (b *biDi) do(method string, params map[string]any, result any) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if params == nil {
		params = map[string]any{}
	}
	b.last++
	if err := wsjson.Write(ctx, b.conn, map[string]any{"id": b.last, "method": method, "params": params}); err != nil {
		return err
	}
	for {
		var answer struct {
			ID             int
			Type           string
			Error, Message string
			Result         json.RawMessage
		}
		if err := wsjson.Read(ctx, b.conn, &answer); err != nil {
			return fmt.Errorf("%s: %w", method, err)
		}
		switch {
		case answer.ID != b.last: // an event
		case answer.Type != "success":
			return fmt.Errorf("%s: %s: %.300s", method, answer.Error, answer.Message)
		case result == nil:
			return nil
		default:
			return json.Unmarshal(answer.Result, result)
		}
	}
}

func (b *biDi) newTab() (string, error) {
	var opened struct{ Context string }
	err := b.do("browsingContext.create", map[string]any{"type": "tab"}, &opened)
	return opened.Context, err
}

func (b *biDi) closeTab(handle string) error {
	return b.do("browsingContext.close", map[string]any{"context": handle}, nil)
}

func (b *biDi) open(handle, url string) error {
	return b.do("browsingContext.navigate", map[string]any{"context": handle, "url": url, "wait": "none"}, nil)
}

func (b *biDi) back(handle string) error {
	return b.do("browsingContext.traverseHistory", map[string]any{"context": handle, "delta": -1}, nil)
}

func (b *biDi) reload(handle string) error {
	return b.do("browsingContext.reload", map[string]any{"context": handle, "wait": "none"}, nil)
}

func (b *biDi) click(handle, xpath string) error {
	var found struct{ Nodes []struct{ SharedID string } }
	if err := b.do("browsingContext.locateNodes", map[string]any{
		"context": handle, "locator": map[string]string{"type": "xpath", "value": xpath},
	}, &found); err != nil {
		return err
	}
	if len(found.Nodes) != 1 {
		return fmt.Errorf("%w %s", errNothing, xpath)
	}
	element := map[string]any{"type": "element", "element": map[string]string{"sharedId": found.Nodes[0].SharedID}}
	return b.do("input.performActions", map[string]any{"context": handle, "actions": []any{map[string]any{
		"type": "pointer", "id": "mouse", "actions": []map[string]any{
			{"type": "pointerMove", "x": 0, "y": 0, "origin": element},
			{"type": "pointerDown", "button": 0},
			{"type": "pointerUp", "button": 0},
		},
	}}}, nil)
}

func (b *biDi) evaluate(handle, expression string) (string, error) {
	var got struct {
		Type   string
		Result struct{ Value string }
		Detail struct{ Text string } `json:"exceptionDetails"`
	}
	err := b.do("script.evaluate", map[string]any{
		"target": map[string]string{"context": handle}, "awaitPromise": true,
		"expression": "Promise.resolve(" + expression + ").then(v => JSON.stringify(v ?? null))",
	}, &got)
	if err == nil && got.Type != "success" {
		err = fmt.Errorf("script: %s", got.Detail.Text)
	}
	return got.Result.Value, err
}
