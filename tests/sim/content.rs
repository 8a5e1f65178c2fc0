//! The bytes of a file as pages, of which those never written take no room.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes that come to the disk together or not at all. Large, so that a schedule has few of them.
pub const PAGE: u64 = 16 << 10;

/// At most [`PAGE`] bytes; those it does not have are zeros.
pub type Page = Arc<[u8]>;

#[derive(Clone, Default)]
pub struct Content {
    pub size: u64,
    pub pages: BTreeMap<u64, Page>,
}

/// Whether two pages read the same in their first `len` bytes.
pub fn same(a: Option<&Page>, b: Option<&Page>, len: usize) -> bool {
    let cut = |page: Option<&Page>| page.map_or(0, |page| page.len().min(len));
    let (a_len, b_len) = (cut(a), cut(b));
    let (a, b) = (a.map_or(&[][..], |page| &page[..a_len]), b.map_or(&[][..], |page| &page[..b_len]));
    let common = a_len.min(b_len);
    let rest = if a_len > common { &a[common..] } else { &b[common..] };
    a[..common] == b[..common] && rest.iter().all(|byte| *byte == 0)
}

impl Content {
    pub fn of(bytes: &[u8]) -> Self {
        let mut content = Self::default();
        content.write(0, bytes);
        content
    }

    /// How many bytes of page `index` lie before the end.
    pub fn len_of(&self, index: u64) -> usize {
        self.size.saturating_sub(index * PAGE).min(PAGE) as usize
    }

    /// Fills `buffer` from `offset`; returns the bytes before the end.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> usize {
        let len = (buffer.len() as u64).min(self.size.saturating_sub(offset)) as usize;
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (index, within) = (at / PAGE, (at % PAGE) as usize);
            let part = (len - done).min(PAGE as usize - within);
            let target = &mut buffer[done..done + part];
            let page = self.pages.get(&index).map_or(&[][..], |page| &page[..]);
            let have = page.len().saturating_sub(within).min(part);
            if have > 0 {
                target[..have].copy_from_slice(&page[within..within + have]);
            }
            target[have..].fill(0);
            done += part;
        }
        len
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size as usize];
        self.read(&mut bytes, 0);
        bytes
    }

    /// Writes, and tells each page that changed: its number, what it was, and what it is.
    pub fn write_each(&mut self, offset: u64, data: &[u8], mut changed: impl FnMut(u64, Option<&Page>, &Page)) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let (index, within) = (at / PAGE, (at % PAGE) as usize);
            let part = (data.len() - done).min(PAGE as usize - within);
            let old = self.pages.get(&index);
            let mut page = old.map_or_else(Vec::new, |page| page.to_vec());
            if page.len() < within + part {
                page.resize(within + part, 0);
            }
            page[within..within + part].copy_from_slice(&data[done..done + part]);
            let page: Page = page.into();
            changed(index, old, &page);
            self.pages.insert(index, page);
            self.size = self.size.max(at + part as u64);
            done += part;
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.write_each(offset, data, |_, _, _| {});
    }

    pub fn set_size(&mut self, size: u64) {
        if size < self.size {
            self.pages.retain(|index, _| index * PAGE < size);
            let keep = (size % PAGE) as usize;
            if let Some(last) = self.pages.get_mut(&(size / PAGE)).filter(|last| last.len() > keep) {
                *last = last[..keep].into();
            }
        }
        self.size = size;
    }

    /// Frees everything and keeps the size.
    pub fn punch(&mut self) {
        self.pages.clear();
    }

    /// The first difference, in words.
    pub fn difference(&self, other: &Self) -> Option<String> {
        if self.size != other.size {
            return Some(format!("{} bytes rather than {}", self.size, other.size));
        }
        (0..self.size.div_ceil(PAGE))
            .find(|index| !same(self.pages.get(index), other.pages.get(index), self.len_of(*index)))
            .map(|index| format!("page {index} is {} rather than {}", self.word(index), other.word(index)))
    }

    /// What a page has, for people: content is a repeated word.
    pub fn word(&self, index: u64) -> String {
        match self.pages.get(&index) {
            None => "a hole".into(),
            Some(page) => format!("{:02x?}...({})", &page[..page.len().min(16)], page.len()),
        }
    }
}
