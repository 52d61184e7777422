package ganbauth

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// object is a JSON object read strictly: names compare exactly and occur once, the text is UTF-8, and nothing
// follows. encoding/json alone folds case, lets the last duplicate win and takes null for an empty struct.
type object map[string]json.RawMessage

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

// readObject reads a JSON object. Of a name that may repeat, the last value counts. With an
// error it returns the members before the fault.
func readObject(data []byte, mayRepeat func(name string) bool) (object, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	o := object{}
	for dec.More() {
		t, err := dec.Token()
		name, ok := t.(string)
		if err != nil || !ok {
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

// member reads o[name] as a T. An absent member and null are both ok == false; another type is an error.
func member[T any](o object, name string) (value T, ok bool, err error) {
	raw, there := o[name]
	if !there || string(raw) == "null" {
		return value, false, nil
	}
	if err := json.Unmarshal(raw, &value); err != nil {
		return value, false, fmt.Errorf("%s has the wrong type", name)
	}
	return value, true, nil
}
