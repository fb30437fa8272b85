//! Grammar of `.env` files: a hand-written equivalent of python-dotenv's regular expressions (`dotenv/parser.py`).

/// Name with its value, which is not expanded yet; `None` without an `=`.
type Statement = (String, Option<String>);

/// Statement that cannot be parsed.
struct Invalid;

/// Iterator over the statements of a text whose lines end in `\n`. The error is the line, from 1, in which a statement
/// starts that cannot be parsed; the rest of the line with the error is skipped.
pub(super) struct Statements<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Statements<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text, line: 1 }
    }

    /// Parses the next statement; returns `None` for a comment.
    fn statement(&mut self) -> Result<Option<Statement>, Invalid> {
        if let Some(after) = self.rest.strip_prefix("export")
            && after.starts_with(is_blank)
        {
            self.rest = after.trim_start_matches(is_blank);
        }
        let name = self.name()?;
        self.skip(is_blank);
        let value = match self.rest.strip_prefix('=') {
            Some(after) => {
                self.rest = after;
                self.skip(is_blank);
                Some(self.value()?)
            }
            None => None,
        };
        self.end_of_line()?;
        Ok(name.map(|name| (name, value)))
    }

    fn name(&mut self) -> Result<Option<String>, Invalid> {
        if self.rest.starts_with('#') {
            return Ok(None);
        }
        let name = if let Some(quoted) = self.rest.strip_prefix('\'') {
            let (name, after) = quoted.split_once('\'').ok_or(Invalid)?;
            self.rest = after;
            name
        } else {
            self.take_until(|character| is_space(character) || character == '=' || character == '#')
        };
        if name.is_empty() { Err(Invalid) } else { Ok(Some(name.to_owned())) }
    }

    fn value(&mut self) -> Result<String, Invalid> {
        match self.rest.chars().next() {
            Some('\'') => self
                .quoted('\'')
                .map(|raw| unescape(raw, |escaped| matches!(escaped, '\\' | '\'').then_some(escaped))),
            Some('"') => self.quoted('"').map(|raw| unescape(raw, double_quote_escape)),
            _ => Ok(without_comment(self.take_until(|character| character == '\n')).to_owned()),
        }
    }

    /// Parses a quoted value, and returns the text between its quotes.
    fn quoted(&mut self, quote: char) -> Result<&'a str, Invalid> {
        let body = &self.rest[1..];
        let mut end = None;
        for (at, _) in body.match_indices(quote) {
            // A quote after a backslash is skipped, even if the backslash is itself escaped. It ends the value only if
            // no later quote does, because the regular expression backtracks.
            end = Some(at);
            if !body[..at].ends_with('\\') {
                break;
            }
        }
        let end = end.ok_or(Invalid)?;
        self.rest = &body[end + 1..];
        Ok(&body[..end])
    }

    fn end_of_line(&mut self) -> Result<(), Invalid> {
        self.skip(is_blank);
        if self.rest.starts_with('#') {
            self.take_until(|character| character == '\n');
        }
        if self.rest.is_empty() {
            return Ok(());
        }
        self.rest = self.rest.strip_prefix('\n').ok_or(Invalid)?;
        Ok(())
    }

    fn skip(&mut self, skipped: fn(char) -> bool) {
        self.rest = self.rest.trim_start_matches(skipped);
    }

    fn take_until(&mut self, stops: fn(char) -> bool) -> &'a str {
        let (taken, rest) = self.rest.split_at(self.rest.find(stops).unwrap_or(self.rest.len()));
        self.rest = rest;
        taken
    }
}

impl Iterator for Statements<'_> {
    type Item = Result<Statement, usize>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let before = self.rest;
            self.skip(is_space);
            self.line += lines(before, self.rest);
            if self.rest.is_empty() {
                return None;
            }
            let (start, line) = (self.rest, self.line);
            let statement = self.statement();
            if statement.is_err() {
                self.take_until(|character| character == '\n');
            }
            self.line += lines(start, self.rest);
            match statement {
                Ok(None) => {}
                Ok(Some(statement)) => return Some(Ok(statement)),
                Err(Invalid) => return Some(Err(line)),
            }
        }
    }
}

/// Returns the number of line ends that were consumed between `before` and `after`.
fn lines(before: &str, after: &str) -> usize {
    before[..before.len() - after.len()].matches('\n').count()
}

/// Returns whether Python considers a character white space, including four separators that Unicode excludes.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

fn is_blank(character: char) -> bool {
    is_space(character) && character != '\n'
}

/// Removes a comment. A `#` starts one only after white space; at the start of a value it is part of the value.
fn without_comment(value: &str) -> &str {
    let comment = value.match_indices('#').find(|(at, _)| value[..*at].ends_with(is_space));
    value[..comment.map_or(value.len(), |(at, _)| at)].trim_end_matches(is_space)
}

fn double_quote_escape(escaped: char) -> Option<char> {
    Some(match escaped {
        '\\' | '\'' | '"' => escaped,
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        _ => return None,
    })
}

/// Replaces escape sequences. Unknown ones are kept, including the backslash.
fn unescape(raw: &str, escape: fn(char) -> Option<char>) -> String {
    let mut text = String::with_capacity(raw.len());
    let mut characters = raw.chars().peekable();
    while let Some(character) = characters.next() {
        let escaped = characters.peek().copied().filter(|_| character == '\\').and_then(escape);
        if escaped.is_some() {
            characters.next();
        }
        text.push(escaped.unwrap_or(character));
    }
    text
}
