package ganbauth

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// object is a JSON object that was read strictly. encoding/json alone would ignore the
// case of names, take the last of several members with one name, and accept null.
type object map[string]json.RawMessage

// parseObject reads a JSON object in UTF-8 with nothing after it. A name may occur once.
func parseObject(data []byte) (object, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("not UTF-8")
	}
	o, err := readObject(data, func(string) bool { return false })
	if err != nil {
		return nil, err
	}
	return o, nil
}

// readObject reads a JSON object. If a name may repeat, its last value counts. With an
// error it also returns the members before the fault.
func readObject(data []byte, mayRepeat func(name string) bool) (object, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, _ := dec.Token(); t != json.Delim('{') { // nil if it fails
		return nil, errors.New("not a JSON object")
	}
	o := object{}
	for dec.More() {
		t, _ := dec.Token()
		name, ok := t.(string) // nil if it fails
		if !ok {
			return o, errors.New("malformed JSON")
		}
		if _, ok := o[name]; ok && !mayRepeat(name) {
			return o, errors.New("a name occurs twice")
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return o, errors.New("malformed JSON")
		}
		o[name] = value
	}
	if _, err := dec.Token(); err != nil {
		return o, errors.New("malformed JSON")
	}
	if _, err := dec.Token(); err != io.EOF {
		return o, errors.New("text after the JSON object")
	}
	return o, nil
}

// member reads o[name] as a T. If the member is absent or null, ok is false. For another
// type ok is true, value is of no use, and there is an error.
func member[T any](o object, name string) (value T, ok bool, err error) {
	raw, there := o[name]
	ok = there && string(raw) != "null"
	if ok && json.Unmarshal(raw, &value) != nil {
		err = fmt.Errorf("%s has the wrong type", name)
	}
	return value, ok, err
}
